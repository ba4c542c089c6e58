"""Experts of a rollout, replayed in training: from the engine through packs to the routers."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from megatron.core.transformer.moe.moe_utils import topk_routing_with_score_function
from megatron.core.transformer.moe.router_replay import RouterReplay, RouterReplayAction
from torch import Tensor

from dsv3_plugin.data.batch import Batch, StageInputs, get_packs
from dsv3_plugin.distributed.packs import CHOSEN
from dsv3_plugin.distributed.world import single_process
from dsv3_plugin.inference.engine import Engine, EngineSettings
from dsv3_plugin.inference.requests import Request, SamplingParameters
from dsv3_plugin.model.build import build_model
from dsv3_plugin.model.router import DeepSeekRouter
from dsv3_plugin.rollouts.rollout import Rollout
from dsv3_plugin.rollouts.rows import Text, micro_batches, packed
from dsv3_plugin.stages.sft import computed
from tests import oracles

CONFIG = oracles.model_config(max_position_embeddings=256, mtp_num_layers=1)
LAYERS, TOP_K = 2, CONFIG.moe_router_topk  # of three layers the first is dense


def drawn(seed: int, **overrides: object) -> torch.nn.Module:
    model = build_model(CONFIG, **overrides)
    oracles.randomize(model, seed)
    return model.train()


@pytest.fixture(scope="module", autouse=True)
def world() -> Iterator[None]:
    with single_process(seed=1):
        yield


@pytest.fixture(scope="module")
def texts(world: None) -> list[Text]:
    """Answers of a model that nobody has afterwards."""
    requests = [
        Request(tuple(range(1, 2 + length)), SamplingParameters(max_tokens=9, n=2, seed=length))
        for length in (4, 20)
    ]
    settings = EngineSettings(2**22, record_experts=True)
    answers = Engine(drawn(1), settings).run(requests)
    return [Text.of(Rollout.of(answer)) for answer in answers]


def batch_of(texts: list[Text]) -> Batch:
    (row,) = packed(texts, 96, 1, 0)
    return get_packs(iter(micro_batches([row], 1, 0, 1)), StageInputs(tokens=True, labels=True))


def routers(model: torch.nn.Module) -> list[DeepSeekRouter]:
    """Of the decoder's layers."""
    return [module for module in model.decoder.modules() if isinstance(module, DeepSeekRouter)]


@contextmanager
def watched(model: torch.nn.Module) -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """Logits, weights and choice of each router that is called."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    with pytest.MonkeyPatch.context() as patch:
        for router in routers(model):

            def routing(logits, *args, of=router.routing, **kwargs):
                probs, chosen = of(logits, *args, **kwargs)
                seen.append((logits, probs, chosen))
                return probs, chosen

            patch.setattr(router, "routing", routing)
        yield seen


def assert_replayed(seen: list[tuple[Tensor, Tensor, Tensor]], batch: Batch) -> None:
    known = batch.boundaries.experts
    assert len(seen) == LAYERS
    for layer, (_, probs, routing_map) in enumerate(seen):
        told = known[:, layer, 0] != CHOSEN
        expected = torch.zeros_like(routing_map).scatter(1, known[told][:, layer], True)
        assert torch.equal(routing_map[told], expected[: told.sum()])
        assert bool((routing_map.sum(1) == TOP_K).all())
        assert torch.equal(probs != 0, routing_map)


def test_engines_tell_all_but_the_last_token(texts: list[Text]) -> None:
    assert len(texts) == 4
    for text in texts:
        assert text.experts.shape == (len(text) - 1, LAYERS, TOP_K)
    batch = batch_of(texts)
    told = batch.boundaries.experts[..., 0] != CHOSEN
    assert told.sum() == LAYERS * sum(len(text) - 1 for text in texts)


def test_training_takes_the_experts_of_the_rollout(texts: list[Text]) -> None:
    """With other weights, which choose otherwise, to the weights and gradients that core's own
    replay has of the same logits."""
    model, batch = drawn(2), batch_of(texts)
    plain = batch_of([Text(t.prompt, t.answer, t.log_probs) for t in texts])
    with watched(model) as chosen:
        computed(model, plain)
    with watched(model) as seen:
        losses = computed(model, batch)
    assert_replayed(seen, batch)
    assert all(not torch.equal(a[2], b[2]) for a, b in zip(chosen, seen, strict=True))

    draw, replay = torch.Generator().manual_seed(0), RouterReplay()
    RouterReplay.global_router_replay_instances.remove(replay)
    replay.set_router_replay_action(RouterReplayAction.REPLAY_FORWARD)
    for layer, ((logits, probs, routing_map), router) in enumerate(
        zip(seen, routers(model), strict=True)
    ):
        experts = batch.boundaries.experts[:, layer]
        own = router._choose(torch.sigmoid(logits.detach().view(len(experts), -1)))
        replay.set_target_indices(torch.where(experts == CHOSEN, own, experts))
        flat = logits.detach().view(len(experts), -1).requires_grad_()
        theirs, map_of_theirs = topk_routing_with_score_function(
            flat,
            TOP_K,
            score_function="sigmoid",
            scaling_factor=CONFIG.moe_router_topk_scaling_factor,
            expert_bias=router.expert_bias,
            router_replay=replay,
        )
        assert torch.equal(map_of_theirs, routing_map)
        torch.testing.assert_close(probs, theirs, rtol=1e-6, atol=1e-7)
        wanted = torch.randn(probs.shape, generator=draw)
        (mine,) = torch.autograd.grad(probs, logits, wanted, retain_graph=True)
        (other,) = torch.autograd.grad(theirs, flat, wanted)
        torch.testing.assert_close(mine.view_as(other), other, rtol=1e-5, atol=1e-6)
    losses.sum().backward()
    assert all(router.weight.grad.abs().max() > 0 for router in routers(model))


def test_two_runs_share_nothing(texts: list[Text]) -> None:
    """Each replays what its own micro-batches say, the forward that a backward repeats too, though
    others have come meanwhile."""
    again = drawn(2, recompute_granularity="selective", recompute_modules=["moe"])
    other = drawn(3)
    ours, theirs = batch_of(texts[:2]), batch_of(texts[2:])
    expected = drawn(2)
    computed(expected, ours).sum().backward()

    with watched(again) as first, watched(other) as second:
        losses = computed(again, ours)
        assert_replayed(first, ours)
        computed(other, theirs)
        assert_replayed(second, theirs)
        computed(other, batch_of([Text((1, 2), (3,), (0.0,))]))
        losses.sum().backward()
    assert_replayed(first[LAYERS:][::-1], ours)  # backward begins with the last layer
    assert RouterReplay.global_router_replay_instances == []
    gradients = dict(expected.named_parameters())
    for name, parameter in again.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=0, atol=1e-5)
