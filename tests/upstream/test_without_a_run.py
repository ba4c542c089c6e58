"""What upstream documents holds with the table of patches applied, where no run of ours trains.

A test for each row, on one process: what upstream's function gives as installed, it gives after
`register()`. Several ranks: test_without_a_run_on_ranks.py.
"""

import contextlib
import inspect
from collections.abc import Callable
from fractions import Fraction
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed.checkpoint as dcp

import dsv3_plugin
from dsv3_plugin.upstream import cpu_host, patching
from dsv3_plugin.upstream.patching import Patch
from dsv3_plugin.upstream.replace import lookup

cpu_host.enable()

from megatron.core import dist_checkpointing, tensor_parallel  # noqa: E402
from megatron.core.dist_checkpointing.strategies import (  # noqa: E402
    async_utils,
    filesystem_async,
)
from megatron.core.distributed import (  # noqa: E402
    DistributedDataParallel,
    DistributedDataParallelConfig,
)
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec  # noqa: E402
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer  # noqa: E402
from megatron.core.optimizer.optimizer import MegatronOptimizer  # noqa: E402
from megatron.core.packed_seq_params import PackedSeqParams  # noqa: E402
from megatron.core.tensor_parallel import random  # noqa: E402
from megatron.core.transformer import multi_token_prediction  # noqa: E402
from megatron.core.transformer.moe import moe_utils  # noqa: E402
from megatron.core.transformer.multi_token_prediction import MTPLossAutoScaler  # noqa: E402
from megatron.training import training  # noqa: E402
from megatron.training.models import gpt  # noqa: E402

from dsv3_plugin.distributed.world import single_process  # noqa: E402
from dsv3_plugin.training.background_writer import (  # noqa: E402
    init_persistent_async_worker,
)
from dsv3_plugin.training.patches import TABLE  # noqa: E402
from tests.upstream.stock_gpt import TOKENS, stock_gpt  # noqa: E402

HERE = [patch for patch in TABLE if not (patch.fills_in or patch.of_te)]
"""Rows that replace what upstream brings; the others' own tests say what they do."""

COVERED: set[str] = set()


def of(*symbols: str) -> Callable[[Any], Any]:
    """Marks the test of these replaced symbols."""
    COVERED.update(symbols)
    return lambda test: test


@pytest.fixture(autouse=True)
def world():
    patching.unregister()
    with single_process(seed=4):
        yield
    patching.unregister()


def both[T](compute: Callable[[], T]) -> tuple[T, T]:
    """What a computation gives with upstream as installed, and what with the table applied."""
    before = compute()
    dsv3_plugin.register()
    try:
        return before, compute()
    finally:
        dsv3_plugin.unregister()


def test_every_row_has_its_test_here():
    assert sorted(COVERED) == sorted(patch.targets[0] for patch in HERE)


# Signatures


def calls(signature: inspect.Signature) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Ways to call a function: all by position, all by name, and with what is required alone."""
    kinds = inspect.Parameter
    named = [p for p in signature.parameters.values() if p.kind == kinds.POSITIONAL_OR_KEYWORD]
    only = {p.name: 0 for p in signature.parameters.values() if p.kind == kinds.KEYWORD_ONLY}
    required = [p for p in named if p.default is kinds.empty]
    return [
        (tuple(0 for _ in named), only),
        ((), {p.name: 0 for p in named} | only),
        ((), {p.name: 0 for p in required} | only),
        (tuple(0 for _ in required), only),
    ]


@pytest.mark.parametrize("patch", HERE, ids=lambda patch: patch.name)
def test_a_replacement_can_be_called_as_the_original(patch: Patch):
    original = lookup(patch.targets[0])
    dsv3_plugin.register()
    replaced = lookup(patch.targets[0])
    assert replaced.__name__ == original.__name__ or inspect.isclass(replaced)
    if inspect.isclass(original) and issubclass(original, torch.autograd.Function):
        # `apply` takes no names.
        counts = [len(inspect.signature(c.forward).parameters) for c in (replaced, original)]
        assert counts[0] == counts[1]
        return
    signature = inspect.signature(original)
    assert inspect.signature(replaced) == signature
    for positional, named in calls(signature):  # and what is called in truth takes them too
        inspect.signature(replaced, follow_wrapped=False).bind(*positional, **named)


@of(
    "megatron.training.training:train",
    "megatron.training.training:update_num_microbatches",
    "megatron.training.training:finalize_model_grads",
    "megatron.training.training:training_log",
    "megatron.training.training:evaluate_and_print_results",
    "megatron.training.training:save_checkpoint",
    "megatron.training.training:maybe_finalize_async_save",
    "megatron.training.checkpointing:generate_state_dict",
    "megatron.training.checkpointing:_load_base_checkpoint",
    "megatron.training.training:load_checkpoint",
    "megatron.training.initialize:initialize_megatron",
)
@pytest.mark.parametrize(
    "patch",
    [p for p in TABLE if p.replacement.__module__.endswith(("around_upstream", "cpu_host"))],
    ids=lambda patch: patch.name,
)
def test_upstreams_training_is_handed_what_its_caller_gives(patch: Patch):
    original = lookup(patch.targets[0])
    for positional, named in calls(inspect.signature(original)):
        stand_in = mock.create_autospec(original, return_value="its answer")
        assert patch.replacement(stand_in)(*positional, **named) == "its answer"
        (call,) = stand_in.call_args_list
        given, expected = (
            inspect.signature(original).bind(*args, **kwargs)
            for args, kwargs in ((call.args, call.kwargs), (positional, named))
        )
        for bound in (given, expected):
            bound.apply_defaults()
            bound.arguments.pop("allow_no_cuda", None)  # said for everybody on a CPU host
        assert given.arguments == expected.arguments


# Training


@of("megatron.training.training:train_step")
@pytest.mark.parametrize("given", [{}, {"pg_collection": "groups", "p2p_communicator": "p2p"}])
def test_a_step_hands_its_schedule_what_it_was_given(given, monkeypatch):
    class Settings(SimpleNamespace):
        def __getattr__(self, name: str) -> None:
            return None

    class Rerun:
        once = iter([True, False])

        def should_run_forward_backward(self, data: Any) -> bool:
            return next(self.once)

        def should_checkpoint_and_exit(self) -> tuple[bool, bool, int]:
            return False, True, 7

    Rerun.once = iter([True, False])
    dsv3_plugin.register()
    settings = Settings(seq_length=8, micro_batch_size=2)
    for name, value in {
        "get_args": settings,
        "get_timers": mock.MagicMock(),
        "get_num_microbatches": 3,
        "get_rerun_state_machine": Rerun(),
    }.items():
        monkeypatch.setattr(training, name, lambda value=value: value)
    schedule, step = mock.Mock(return_value=[]), mock.Mock()
    chunk = SimpleNamespace(zero_grad_buffer=mock.Mock())
    answer = training.train_step(
        forward_step_func=step,
        data_iterator=None,
        model=[chunk],
        optimizer=mock.Mock(),
        opt_param_scheduler=None,
        config=SimpleNamespace(),
        forward_backward_func=schedule,
        iteration=0,
        **given,
    )
    asked = schedule.call_args.kwargs
    assert asked["forward_step_func"] is step
    assert (asked["num_microbatches"], asked["seq_length"], asked["micro_batch_size"]) == (3, 8, 2)
    assert asked["pg_collection"] == given.get("pg_collection")
    assert asked["p2p_communicator"] == given.get("p2p_communicator")
    assert answer[1:5] == (True, False, True, 7)


@of("megatron.core.pipeline_parallel.schedules:get_forward_backward_func")
def test_the_schedule_is_upstreams_choice():
    sizes = [(1, None), (2, None), (4, 2)]
    before, after = both(
        lambda: [training.get_forward_backward_func(pp_size=p, vp_size=v) for p, v in sizes]
    )
    assert [f.__name__ for f in before] == [
        "forward_backward_no_pipelining",
        "forward_backward_pipelining_without_interleaving",
        "forward_backward_pipelining_with_interleaving",
    ]
    assert after == before


@of("megatron.training.training:OptimizerParamScheduler")
@pytest.mark.parametrize("style", ["constant", "linear", "cosine", "inverse-square-root", "WSD"])
def test_the_learning_rate_follows_upstreams_styles(style):
    def rates() -> list[float]:
        def scheduler(optimizer: torch.optim.Optimizer) -> Any:
            return training.OptimizerParamScheduler(
                optimizer,
                init_lr=0.0,
                max_lr=0.1,
                min_lr=0.01,
                lr_warmup_steps=4,
                lr_decay_steps=20,
                lr_decay_style=style,
                start_wd=0.1,
                end_wd=0.1,
                wd_incr_steps=20,
                wd_incr_style="constant",
                wsd_decay_steps=6,
                lr_wsd_decay_style="linear",
            )

        weight = torch.nn.Parameter(torch.ones(1))
        group = {"params": [weight], "wd_mult": 1.0, "lr_mult": 1.0, "max_lr": 0.1, "min_lr": 0.01}
        optimizer = torch.optim.SGD([group], lr=1.0)
        ours, seen = scheduler(optimizer), []
        for _ in range(12):
            ours.step(2)
            seen.append(optimizer.param_groups[0]["lr"])
        again = scheduler(optimizer)
        again.load_state_dict(ours.state_dict())
        return [*seen, optimizer.param_groups[0]["lr"], again.num_steps]

    before, after = both(rates)
    assert after == before


# Optimizers


def optimizer_of(model: torch.nn.Module, zero1: bool = False) -> Any:
    ddp = DistributedDataParallelConfig(use_distributed_optimizer=zero1)
    wrapped = DistributedDataParallel(model.config, ddp, model)
    config = OptimizerConfig(optimizer="adam", lr=1e-2, use_distributed_optimizer=zero1)
    return get_megatron_optimizer(config, [wrapped])


def steps(optimizer: Any, model: torch.nn.Module, count: int) -> None:
    draw = torch.Generator().manual_seed(0)
    for _ in range(count):
        for parameter in model.parameters():
            parameter.main_grad.copy_(torch.randn(parameter.shape, generator=draw))
        optimizer.step()


@of(
    "megatron.core.optimizer:_get_megatron_optimizer_based_on_param_groups",
    "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer.state_dict",
)
@pytest.mark.parametrize("zero1", [False, True])
def test_upstreams_optimizer_takes_the_same_steps_and_saves_the_same(zero1):
    def trained() -> tuple[dict[str, torch.Tensor], Any]:
        tensor_parallel.model_parallel_cuda_manual_seed(4, force_reset_rng=True)
        model = stock_gpt()
        optimizer = optimizer_of(model, zero1)
        steps(optimizer, model, 3)
        return model.state_dict(), optimizer.state_dict()

    (weights, saved), (ours, kept) = both(trained)
    weights = {name: value for name, value in weights.items() if torch.is_tensor(value)}
    for name, value in weights.items():
        assert torch.equal(value, ours[name]), name
    assert torch.utils._pytree.tree_structure(kept) == torch.utils._pytree.tree_structure(saved)
    for one, other in zip(*map(torch.utils._pytree.tree_leaves, (saved, kept)), strict=True):
        assert torch.equal(one, other) if torch.is_tensor(one) else one == other


@of(
    "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer.load_state_dict",
    "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer"
    "._set_main_param_and_optimizer_states",
)
def test_upstreams_sharded_optimizer_goes_on_where_it_was_saved(tmp_path):
    def state(model: torch.nn.Module, optimizer: Any, loading: bool) -> dict[str, Any]:
        weights = model.sharded_state_dict()
        form = {"distrib_optim_sharding_type": "fully_reshardable"}
        return {
            "weights": weights,
            "optimizer": optimizer.sharded_state_dict(weights, loading, metadata=form),
        }

    dsv3_plugin.register()
    model, other = stock_gpt(), stock_gpt()
    optimizer, again = optimizer_of(model, zero1=True), optimizer_of(other, zero1=True)
    steps(optimizer, model, 2)
    dist_checkpointing.save(state(model, optimizer, False), str(tmp_path), async_strategy="mcore")
    loaded = dist_checkpointing.load(state(other, again, True), str(tmp_path))
    other.load_state_dict(loaded["weights"])
    again.load_state_dict(loaded["optimizer"])
    for parameters in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(*parameters)
    for one, trained in ((optimizer, model), (again, other)):
        steps(one, trained, 1)
    for parameters in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(*parameters)


@of("megatron.core.optimizer.optimizer:MegatronOptimizer._filter_and_reorder_param_groups")
def test_groups_that_do_not_match_are_refused_as_upstream_says():
    group = {"wd_mult": 1.0, "lr_mult": 1.0, "is_expert_parallel": False, "max_lr": 0.1}
    current, saved = [group | {"params": [0, 1]}], [group | {"params": [5, 6], "lr": 3.0}]

    def matched() -> list[Any]:
        found = MegatronOptimizer._filter_and_reorder_param_groups(
            current_groups=current, state_dict_groups=[dict(g) for g in saved]
        )
        with pytest.raises(ValueError, match="Could not find parameter group"):
            MegatronOptimizer._filter_and_reorder_param_groups(
                current, [g | {"max_lr": 0.2} for g in saved]
            )
        return found

    before, after = both(matched)
    assert after == before
    assert before[0]["lr"] == 3.0


# Models


@of(
    "megatron.core.tensor_parallel:vocab_parallel_cross_entropy",
    "megatron.core.tensor_parallel.random:CheckpointWithoutOutput.__init__",
)
@pytest.mark.parametrize("ignored", [False, True], ids=["all labels", "some of them ignored"])
@pytest.mark.parametrize("recompute", [{}, {"recompute_granularity": "full"}], ids=str)
def test_upstreams_model_has_the_same_losses_and_gradients(ignored, recompute):
    if recompute:
        recompute = recompute | {"recompute_method": "uniform", "recompute_num_layers": 1}

    def computed() -> list[torch.Tensor]:
        tensor_parallel.model_parallel_cuda_manual_seed(4, force_reset_rng=True)
        model = stock_gpt(**recompute).train()
        labels = TOKENS.roll(-1, 1)
        labels = labels.masked_fill(labels % 3 == 0, -100) if ignored else labels
        losses = model(TOKENS, torch.arange(TOKENS.shape[1])[None], None, labels=labels)
        losses[labels >= 0].mean().backward()
        return [losses.detach(), *(parameter.grad for parameter in model.parameters())]

    before, after = both(computed)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-7)


def test_what_upstream_recomputes_without_its_output_is_computed_again():
    dsv3_plugin.register()
    linear, x = torch.nn.Linear(4, 4), torch.randn(3, 4, requires_grad=True)
    again = tensor_parallel.CheckpointWithoutOutput()
    hidden = again.checkpoint(linear, x)
    out = hidden * hidden
    again.discard_output_and_register_recompute(out)
    out.sum().backward()
    expected = torch.autograd.grad((linear(x) ** 2).sum(), x)[0]
    torch.testing.assert_close(x.grad, expected)


@of("megatron.training.models.gpt:mtp_block_spec")
def test_upstreams_layers_keep_upstreams_mtp():
    config = SimpleNamespace(
        transformer=stock_gpt(mtp_num_layers=1, transformer_impl="local").config
    )
    spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    before, after = both(lambda: gpt.mtp_block_spec(config, spec, vp_stage=None))
    assert repr(after) == repr(before)
    assert "dsv3_plugin" not in repr(after)


@of("megatron.core.transformer.moe.moe_utils:maybe_move_tensor_to_cpu")
def test_a_tensor_on_the_cpu_stays_one_unless_numpy_is_asked_for():
    tensor = torch.arange(3)
    dsv3_plugin.register()
    move = moe_utils.maybe_move_tensor_to_cpu
    assert move(tensor) is tensor
    assert move(tensor, False, True) is tensor
    assert move(None, as_numpy=True) is None
    assert move([1, 2], as_numpy=True, record_stream=True) == [1, 2]
    assert move(tensor, as_numpy=True).tolist() == [0, 1, 2]


@of("megatron.core.tensor_parallel.mappings:_AllToAll")
def test_an_exchange_with_oneself_is_the_identity():
    group = torch.distributed.group.WORLD
    rows = torch.randn(4, 2, requires_grad=True)

    def exchanged() -> list[torch.Tensor]:
        out = tensor_parallel.all_to_all(group, rows, [4], [4])
        return [out.detach(), *torch.autograd.grad((out**2).sum(), rows)]

    before, after = both(exchanged)
    assert all(map(torch.equal, before, after))


# Data and checkpoints


@of("megatron.core.datasets.utils:compile_helpers")
def test_the_data_helper_is_there_when_upstream_is_asked_to_compile_it():
    from megatron.core.datasets import utils

    dsv3_plugin.register()
    assert utils.compile_helpers() is None


@of(
    "megatron.core.dist_checkpointing.strategies.async_utils:AsyncCallsQueue._get_async_caller",
    "megatron.training.initialize:init_persistent_async_worker",
)
def test_who_saves_without_a_run_has_upstreams_writer():
    def callers() -> list[type]:
        queues = [async_utils.AsyncCallsQueue(persistent) for persistent in (False, True)]
        return [type(calls._get_async_caller()) for calls in queues]

    before, after = both(callers)
    assert before == after
    worker = mock.Mock(return_value="a process")
    assert init_persistent_async_worker(worker)(0, mp_mode="forkserver") == "a process"
    worker.assert_called_once_with(0, mp_mode="forkserver")


@of("megatron.core.dist_checkpointing.strategies.filesystem_async:get_write_results_queue")
def test_a_queue_that_no_run_asks_for_reaches_other_processes(monkeypatch):
    asked = mock.Mock(return_value="between processes")
    monkeypatch.setattr(filesystem_async, "get_write_results_queue", asked)
    dsv3_plugin.register()
    assert filesystem_async.get_write_results_queue("fork") == "between processes"
    asked.assert_called_once_with("fork")
    assert filesystem_async.get_write_results_queue(mp_mode="spawn") == "between processes"


@of(
    "torch:load",
    "torch.distributed.checkpoint.default_planner:DefaultLoadPlanner.load_bytes",
    "torch.distributed.checkpoint.filesystem:FileSystemReader.read_metadata",
)
def test_torchs_checkpoints_hold_objects_of_any_class(tmp_path):
    kept = {"x._extra_state": Fraction(1, 3), "tensor": torch.arange(3)}
    dcp.save(kept, checkpoint_id=tmp_path, no_dist=True)
    torch.save(Fraction(1, 3), tmp_path / "f.pt")

    def load() -> tuple[Any, ...]:
        state = {"x._extra_state": None, "tensor": torch.zeros(3, dtype=torch.int64)}
        dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
        metadata = dcp.FileSystemReader(tmp_path).read_metadata()
        alone = torch.load(f=tmp_path / "f.pt", weights_only=False)
        return state["x._extra_state"], state["tensor"].tolist(), metadata.planner_data, alone

    before, after = both(load)
    assert before == after
    assert after[:2] == (Fraction(1, 3), [0, 1, 2])


@of(
    "megatron.core.transformer.moe.moe_utils:MoEAuxLossAutoScaler.set_loss_scale",
    "megatron.core.transformer.multi_token_prediction:MTPLossAutoScaler.set_loss_scale",
)
def test_the_scale_of_a_loss_is_the_last_that_was_set():
    scalers = moe_utils.MoEAuxLossAutoScaler, MTPLossAutoScaler

    def scales() -> list[float]:
        with contextlib.ExitStack() as stack:
            for scaler in scalers:
                stack.enter_context(
                    mock.patch.object(scaler, "main_loss_backward_scale", torch.tensor(1.0))
                )
                for scale in (2.0, 3.0):
                    scaler.set_loss_scale(torch.tensor(scale))
            return [float(scaler.main_loss_backward_scale) for scaler in scalers]

    assert both(scales) == ([3.0, 3.0], [3.0, 3.0])


@of("megatron.core.tensor_parallel.layers:ColumnParallelLinear.__init__")
def test_a_head_without_fused_accumulation_is_built_as_upstream_builds_it():
    def built() -> tuple[Any, ...]:
        model = stock_gpt()
        head = model.output_layer
        return head.config is model.config, head.gradient_accumulation_fusion, head.weight.shape

    before, after = both(built)
    assert after == before
    assert after[:2] == (True, False)


@of("megatron.core.tensor_parallel.random:_get_share_storage")
def test_what_is_recomputed_is_seen_by_all_that_was_kept():
    def seen() -> list[torch.Tensor]:
        kept = torch.zeros(4, 3)
        views = [kept.view(12), kept[1:]]
        kept.untyped_storage().resize_(0)
        random._get_share_storage()(kept, torch.arange(12.0).view(4, 3))
        return [kept, *views]

    before, after = both(seen)
    assert all(map(torch.equal, before, after))


@of("megatron.core.transformer.multi_token_prediction:MultiTokenPredictionLayer._get_embeddings")
def test_a_layer_that_predicts_ahead_has_upstreams_mask_of_padding():
    layer = SimpleNamespace(cp_group=None, config=SimpleNamespace(mtp_detach_heads=False))
    ids, hidden = torch.arange(4)[None], torch.zeros(4, 1, 2)
    padding = torch.tensor([[False, False, True, True]])

    def embed(input_ids, position_ids):
        return input_ids.float()

    def shifted() -> torch.Tensor:
        # Looked up at the moment of use: the row replaces it in the class.
        get = multi_token_prediction.MultiTokenPredictionLayer._get_embeddings
        return get(layer, ids, ids, embed, hidden, None, padding)[2]

    before, after = both(shifted)
    assert torch.equal(before, after)


@of("megatron.core.transformer.multi_token_prediction:roll_tensor")
def test_labels_are_rolled_as_ever_on_one_rank_and_in_packs_without_padding():
    ends = torch.tensor([0, 3, 8], dtype=torch.int32)
    pack = PackedSeqParams(qkv_format="thd", cu_seqlens_q=ends, cu_seqlens_kv=ends)
    labels = torch.arange(1, 9)[None]

    def rolled() -> list[tuple[torch.Tensor, torch.Tensor]]:
        roll = multi_token_prediction.roll_tensor
        return [roll(labels), roll(labels, packed_seq_params=pack)]

    before, after = both(rolled)
    for (ours, count), (theirs, counted) in zip(after, before, strict=True):
        assert torch.equal(ours, theirs)
        assert count == counted
