"""The dispatchers inside a model: MTP, shared expert, recomputation, and what is counted."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel import mappings, model_parallel_cuda_manual_seed
from megatron.core.transformer.moe import fused_a2a, token_dispatcher
from megatron.core.transformer.transformer_config import TransformerConfig

from dsv3_plugin.dispatch.alltoall import AllToAll
from dsv3_plugin.dispatch.link import Link, Pending
from dsv3_plugin.dispatch.moe_layer import MoELayer, configure_dispatch
from dsv3_plugin.dispatch.step_metrics import (
    collect_step_metrics,
    discard_counts,
    tensorboard_scalars,
)
from dsv3_plugin.distributed.overlap import Overlap
from dsv3_plugin.errors import UserError
from dsv3_plugin.model.config import transformer_config
from dsv3_plugin.model.layers import mtp_block_spec
from dsv3_plugin.model.specs import deepseek_v3_spec
from dsv3_plugin.upstream.alltoall_on_cpu import maybe_move_tensor_to_cpu
from tests import oracles
from tests.gloo_ranks import run_ranks

RANKS, SEQUENCES, LENGTH, STEPS = 4, 8, 16, 20
TWO_HOP = {"kind": "two_hop", "ranks_per_node": 2, "hide_shared_expert": True}


def build(dispatch: dict, **overrides) -> GPTModel:
    """The same weights on every call; `overrides` are fields of upstream's configuration."""
    described = oracles.model_config(mtp_num_layers=1)
    config = transformer_config(described, expert_model_parallel_size=RANKS, **overrides)
    configure_dispatch(config, **dispatch)
    layers = deepseek_v3_spec(config)
    torch.manual_seed(7)
    model_parallel_cuda_manual_seed(7, force_reset_rng=True)
    return GPTModel(
        config=config,
        transformer_layer_spec=layers,
        mtp_block_spec=mtp_block_spec(config, layers),
        vocab_size=described.vocab_size,
        max_sequence_length=described.max_position_embeddings,
        position_embedding_type="rope",
        share_embeddings_and_output_weights=False,
    )


def tokens_of(step: int) -> torch.Tensor:
    """This rank's sequences of a step: `[SEQUENCES / RANKS, LENGTH + 1]`."""
    generator = torch.Generator().manual_seed(step)
    everyones = torch.randint(96, (SEQUENCES, LENGTH + 1), generator=generator)
    return everyones.chunk(RANKS)[dist.get_rank()]


def loss_of(model: GPTModel, step: int) -> torch.Tensor:
    tokens = tokens_of(step)
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    positions = torch.arange(LENGTH).expand_as(inputs)
    return model(inputs, positions, None, labels=labels).mean()


def gradients_of(dispatch: dict, **overrides) -> dict[str, torch.Tensor]:
    model = build(dispatch, **overrides).train()
    loss = loss_of(model, 0)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {"loss": loss.detach(), **gradients}


def gradients_of_two(dispatch: dict, *, paired: bool, **overrides) -> dict[str, torch.Tensor]:
    """Of two micro-batches: the forward of the second before, or beside, the first's backward."""
    model = build(dispatch, **overrides).train()
    first = loss_of(model, 0)
    if paired:
        second, _ = Overlap().run_pair(lambda: loss_of(model, 1), first.backward)
    else:
        second = loss_of(model, 1)
        first.backward()
    second.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {"losses": torch.stack([first.detach(), second.detach()]), **gradients}


def curve(dispatch: dict) -> list[float]:
    """Loss of twenty steps of plain gradient descent, averaged over ranks."""
    model = build(dispatch).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, step % 4)
        loss.backward()
        for name, parameter in model.named_parameters():
            if ".experts." not in name:
                dist.all_reduce(parameter.grad)
            parameter.grad /= RANKS
        optimizer.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(float(mean) / RANKS)
    return losses


def counts_of(dispatch: dict, **overrides) -> dict:
    """Metrics of a step of two micro-batches; of the same after an evaluation; of nothing."""
    model = build(dispatch, **overrides).train()

    def metrics_of_step() -> dict:
        discard_counts([model])
        for step in range(2):
            loss_of(model, step).backward()
        return collect_step_metrics([model])

    metrics = metrics_of_step()
    with torch.no_grad():
        loss_of(model, 5)
    metrics["again"] = metrics_of_step()
    metrics["after"] = collect_step_metrics([model])
    return metrics


def flex_of(kind: str) -> dict:
    """What upstream builds where a library is there, as far as this can be seen without it."""
    fused_a2a.HAVE_DEEP_EP = fused_a2a.HAVE_HYBRIDEP = True
    token_dispatcher.fused_dispatch = token_dispatcher.hybrid_ep_dispatch = object()
    token_dispatcher.set_deepep_num_sms = lambda number: None
    zeros = torch.zeros
    torch.zeros = lambda *size, device=None, **options: zeros(*size, **options)  # no GPU here
    try:
        model = build({"kind": kind})
    finally:
        torch.zeros = zeros
    dispatchers = [
        module.token_dispatcher for module in model.modules() if isinstance(module, MoELayer)
    ]
    return {
        "dispatchers": {type(dispatcher) for dispatcher in dispatchers},
        "managers": {type(dispatcher._comm_manager) for dispatcher in dispatchers},
        "metrics": set(collect_step_metrics([model])),
    }


def events(hide: bool) -> list[str]:
    """What one MoE layer does forward and backward, in order: hops between nodes, shared expert."""
    model = build(TWO_HOP | {"hide_shared_expert": hide}).train()
    layer = model.decoder.layers[1].mlp
    seen: list[str] = []

    def say(name: str) -> None:
        seen.append(name)

    def watch(module: torch.nn.Module, name: str) -> None:
        module.register_forward_hook(lambda *_: say(name))
        # The gradient of its input, which is when its backward has computed.
        module.register_full_backward_hook(lambda *_: say(f"gradient of {name}"))

    watch(layer.shared_experts.linear_fc1, "fc1")
    watch(layer.shared_experts.linear_fc2, "fc2")
    post, wait = Link.post, Pending.wait

    def saying_post(link: Link, *arguments: Any) -> Pending:
        if arguments[-1].endswith("between nodes"):
            say(f"post {arguments[-1].removesuffix(' between nodes')}")
        return post(link, *arguments)

    def saying_wait(pending: Pending) -> torch.Tensor:
        if pending.passage.endswith("between nodes"):
            say(f"wait {pending.passage.removesuffix(' between nodes')}")
        return wait(pending)

    Link.post, Pending.wait = saying_post, saying_wait
    try:
        hidden = torch.randn(4, 1, 32, requires_grad=True)
        layer(hidden)[0].sum().backward()
    finally:
        Link.post, Pending.wait = post, wait
    return seen


def on_ranks(rank: int) -> dict:
    token_dispatcher.maybe_move_tensor_to_cpu = maybe_move_tensor_to_cpu(
        token_dispatcher.maybe_move_tensor_to_cpu
    )
    mappings._AllToAll = AllToAll
    parallel_state.initialize_model_parallel(expert_model_parallel_size=RANKS)
    beside = TWO_HOP | {"hide_shared_expert": False}
    recomputed = {
        "recompute_granularity": "selective",
        "recompute_modules": ["moe"],
    }
    return {
        "alltoall": gradients_of({"kind": "alltoall"}),
        "two_hop": gradients_of(TWO_HOP),
        "shared expert not hidden": gradients_of(beside),
        "recomputed": gradients_of(TWO_HOP, **recomputed),
        "fp8": gradients_of(TWO_HOP | {"precision": "fp8"}),
        "curves": (curve({"kind": "alltoall"}), curve(TWO_HOP)),
        "one after the other": gradients_of_two({"kind": "alltoall"}, paired=False),
        "pairs": {
            "alltoall": gradients_of_two({"kind": "alltoall"}, paired=True, **recomputed),
            "two_hop": gradients_of_two(TWO_HOP, paired=True, **recomputed),
            "two_hop, shared expert not hidden": gradients_of_two(
                beside, paired=True, **recomputed
            ),
        },
        "events": {hide: events(hide) for hide in (True, False)},
        "counts": {kind: counts_of(beside | {"kind": kind}) for kind in ("alltoall", "two_hop")},
        "recomputed counts": counts_of({"kind": "alltoall"}, **recomputed),
        "flex": {kind: flex_of(kind) for kind in ("deepep", "hybridep")},
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    return run_ranks(RANKS, on_ranks, scratch=tmp_path_factory.mktemp("ranks"), timeout_s=180)


@pytest.mark.parametrize("way", ["two_hop", "shared expert not hidden", "recomputed"])
def test_loss_and_every_gradient_equal_upstreams(ranks, way):
    for rank in ranks:
        assert rank[way].keys() == rank["alltoall"].keys()
        for name, expected in rank["alltoall"].items():
            # FP32 through a whole model: the order of additions differs in every layer.
            error = (rank[way][name] - expected).norm() / (expected.norm() + 1e-12)
            assert float(error) < 1e-5, name


@pytest.mark.parametrize("way", ["alltoall", "two_hop", "two_hop, shared expert not hidden"])
def test_a_layer_recomputed_beside_its_own_forward_gives_the_same_gradients(ranks, way):
    # In the pair both sides are in one layer, whose dispatcher keeps state from call to call.
    for rank in ranks:
        for name, expected in rank["one after the other"].items():
            error = (rank["pairs"][way][name] - expected).norm() / (expected.norm() + 1e-12)
            assert float(error) < 1e-5, name


def test_the_shared_expert_computes_while_the_hop_between_nodes_is_under_way(ranks):
    for rank in ranks:
        seen = rank["events"][True]
        assert seen == [
            *("post dispatch", "fc1", "wait dispatch"),
            *("post combine", "fc2", "wait combine"),
            *("post backward of combine", "gradient of fc2", "wait backward of combine"),
            *("post backward of dispatch", "gradient of fc1", "wait backward of dispatch"),
        ]
        assert rank["events"][False][:2] == ["fc1", "fc2"]


def test_fp8_gradients_are_close(ranks):
    for rank in ranks:
        expected = rank["alltoall"]
        # The residual stream does not pass through E4M3, so the loss hardly moves.
        assert float((rank["fp8"]["loss"] - expected["loss"]).abs()) < 1e-4 * expected["loss"]
        for name, gradient in expected.items():
            # E4M3 rounds by at most 2^-4/√3 of a value in the mean square, and a gradient sees two
            # roundings: of what came in and of the gradient that goes out.
            bound = 2 * 2.0**-4 / 3**0.5
            error = (rank["fp8"][name] - gradient).norm() / (gradient.norm() + 1e-12)
            assert float(error) < bound, name


def test_twenty_steps_give_the_same_curve(ranks):
    upstream, two_hop = ranks[0]["curves"]
    assert upstream[-1] < upstream[0] - 0.3  # it learns
    torch.testing.assert_close(torch.tensor(two_hop), torch.tensor(upstream), rtol=1e-5, atol=0)


def test_load_and_traffic_are_counted(ranks):
    for kind in ("alltoall", "two_hop"):
        counted = [rank["counts"][kind] for rank in ranks]
        assert all(metrics == counted[0] for metrics in counted)  # every rank knows the whole
        metrics = counted[0]
        # Layers 1 and 2 have experts, layer 3 is the prediction layer; 4 experts per token.
        assert list(metrics["expert_load"]) == ["1", "2", "3"]
        for layer, load in metrics["expert_load"].items():
            assert sum(load) == 2 * SEQUENCES * LENGTH * 4
            assert sum(metrics["rank_load"][layer]) == sum(load)
            assert metrics["rank_load"][layer][1] == sum(load[4:8])
            assert metrics["node_load"][layer][1] == sum(load[8:])
            assert metrics["max_vio"][layer] == pytest.approx(
                max(load) * 16 / sum(load) - 1, abs=1e-4
            )
        again = metrics["again"]  # an evaluation lies between
        assert again == {name: metrics[name] for name in again}
        assert metrics["after"]["expert_load"] == {}
        assert metrics["after"]["traffic"]["other_node"]["bytes"] == 0
        scalars = tensorboard_scalars(metrics)
        assert scalars["dispatch/other_node_bytes"] == metrics["traffic"]["other_node"]["bytes"]
        assert set(scalars) >= {"max_vio/layer_1", "max_vio/mean", "dispatch/same_node_messages"}
    loads = [ranks[0]["counts"][kind]["expert_load"] for kind in ("alltoall", "two_hop")]
    assert loads[0] == loads[1]


def test_upstreams_traffic_is_the_closed_form(ranks):
    rows, row, weight = 2 * SEQUENCES * LENGTH * 4 * 3, 32 * 4, 4
    counts = 2 * 3 * RANKS * (RANKS - 1) * 16 * 8
    # Forward and backward: two passages with weights, two without.
    expected = rows * (4 * row + 2 * weight) + counts
    # Recomputed, the forward comes twice; the experts' load is the same.
    forward = rows * (2 * row + weight) + counts
    plain, recomputed = ranks[0]["counts"]["alltoall"], ranks[0]["recomputed counts"]
    for metrics, sent in ((plain, expected), (recomputed, expected + forward)):
        assert sum(link["bytes"] for link in metrics["traffic"].values()) == sent
        assert metrics["expert_load"] == plain["expert_load"]


@pytest.mark.parametrize(
    ("kind", "manager"),
    [("deepep", token_dispatcher._DeepepManager), ("hybridep", token_dispatcher._HybridEPManager)],
)
def test_kernels_are_those_of_upstreams_flex_dispatcher(ranks, kind, manager):
    built = ranks[0]["flex"][kind]
    assert built["dispatchers"] == {token_dispatcher.MoEFlexTokenDispatcher}
    assert built["managers"] == {manager}
    # What the kernels send is not known, and zeros would say that it is.
    assert built["metrics"] == {"expert_load", "rank_load", "node_load", "max_vio"}


def test_absent_kernels_are_named():
    config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1)
    if not fused_a2a.HAVE_DEEP_EP:
        with pytest.raises(UserError, match="deep_ep"):
            configure_dispatch(config, "deepep")
    if not fused_a2a.HAVE_HYBRIDEP:
        with pytest.raises(UserError, match="hybrid-ep branch"):
            configure_dispatch(config, "hybridep")
    with pytest.raises(UserError, match="fp8 needs"):
        configure_dispatch(config, "alltoall", precision="fp8")


@pytest.mark.parametrize(
    ("kind", "flag"), [("deepep", "HAVE_DEEP_EP"), ("hybridep", "HAVE_HYBRIDEP")]
)
def test_kernels_are_chosen_by_name(monkeypatch, kind, flag):
    monkeypatch.setattr(fused_a2a, flag, True)
    config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1)
    configure_dispatch(config, kind)
    assert config.moe_token_dispatcher_type == "flex"
    assert config.moe_flex_dispatcher_backend == kind
