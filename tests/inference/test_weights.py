"""Weights that are written to under an engine: seen, however that is done, and nothing of before is
used afterwards."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dsv3_plugin
from dsv3_plugin.inference.engine import Engine, EngineSettings
from dsv3_plugin.inference.requests import Request, SamplingParameters
from dsv3_plugin.inference.weights import Weights
from dsv3_plugin.model.build import build_model
from tests import oracles
from tests.gloo_ranks import run_ranks

CONFIG = oracles.model_config(
    max_position_embeddings=256, moe_ffn_hidden_size=24, moe_shared_expert_intermediate_size=48
)
PROMPT = tuple(range(5, 85))
GREEDY = SamplingParameters(max_tokens=12, temperature=0.0)
SETTINGS = EngineSettings(2**24)


def drawn():
    model = build_model(CONFIG)
    oracles.randomize(model, 6)
    return model


def bits_swapped(weight):
    """Two rows for each other, which no sum over all would see."""
    first = weight.data[0].clone()
    weight.data[0] = weight.data[1]
    weight.data[1] = first


def elsewhere(module):
    """As weights that were sent away come back to where they were, and are others."""
    module.weight.data = module.weight.data.clone().mul_(1.5)


WRITES = {
    "one value": lambda layer: layer.mlp.experts.weight1.data[3, 5, 7].add_(0.5),
    "two experts for each other": lambda layer: bits_swapped(layer.mlp.experts.weight2),
    "all of a tensor": lambda layer: layer.self_attention.linear_kv_up_proj.weight.data.mul_(1.1),
    "a router's bias": lambda layer: layer.mlp.router.expert_bias.data[2:3].add_(0.7),
    "memory elsewhere": lambda layer: elsewhere(layer.self_attention.linear_proj),
}


@pytest.mark.parametrize("what", WRITES)
def test_a_write_that_nobody_tells_of_is_found_before_the_next_text(world, what):
    changing = drawn()
    engine = Engine(changing, SETTINGS)
    request = Request(PROMPT, GREEDY)
    engine.run([request])
    WRITES[what](changing.decoder.layers[1])
    (after,) = engine.run([request])
    (again,) = engine.run([request])
    fresh = drawn()
    WRITES[what](fresh.decoder.layers[1])
    (expected,) = Engine(fresh, SETTINGS).run([request])
    for answer in (after, again):
        assert answer.versions == [1] * 12
        assert answer.tokens == expected.tokens
        torch.testing.assert_close(answer.log_probs, expected.log_probs, rtol=0, atol=1e-5)


def test_what_moves_all_of_a_tensor_is_found_in_the_middle_of_a_text(world):
    """As an optimizer does that writes through `.data`, in BF16."""
    model = build_model(CONFIG, dtype=torch.bfloat16)
    oracles.randomize(model, 6)
    engine = Engine(model, SETTINGS)
    engine.add(Request(PROMPT, GREEDY))
    for _ in range(5):
        engine.step()
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        parameter.data.add_(0.004 * noise)
    done = []
    while engine.busy:
        done += [p.completion for p in engine.step() if p.completion]
    assert done[0].versions == [0] * 5 + [1] * 7


def test_weights_that_come_back_are_weights_that_changed(world):
    """What was computed with those between, and before them, is not known any more."""
    model = drawn()
    engine = Engine(model, SETTINGS)
    request = Request(PROMPT, GREEDY)
    (before,) = engine.run([request])
    weight = model.decoder.layers[0].self_attention.linear_q_up_proj.weight
    kept = weight.data.clone()
    weight.data.mul_(-1.5)
    engine.run([replace(request, sampling=replace(GREEDY, max_tokens=2))])
    computed = engine.counters.computed
    weight.data.copy_(kept)
    (after,) = engine.run([request])
    assert after.tokens == before.tokens
    assert after.versions == [2] * 12
    assert engine.counters.computed == computed + len(PROMPT) + 11  # its prompt once more


def test_weights_that_stay_do_not_change(world):
    model = drawn()
    model.decoder.layers[0].input_layernorm.weight.data[0] = float("nan")  # equals not itself
    weights = Weights([model])
    assert not weights.changed(thorough=True)
    assert not weights.changed(thorough=False)
    assert not weights.changed(thorough=True)


def answers_around_a_step(rank: int, folder: Path):
    """Megatron's distributed optimizer moves BF16 weights under an engine, on two ranks."""
    from megatron.core import parallel_state
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    dsv3_plugin.register()
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(1, force_reset_rng=True)
    model = build_model(CONFIG, dtype=torch.bfloat16, bf16=True, moe_router_bias_update_rate=1e-2)
    oracles.randomize(model, 6)
    settings = DistributedDataParallelConfig(use_distributed_optimizer=True)
    wrapped = DistributedDataParallel(model.config, settings, model)
    settings = OptimizerConfig(optimizer="adam", lr=1e-2, bf16=True, use_distributed_optimizer=True)
    optimizer = get_megatron_optimizer(settings, [wrapped])

    engine = Engine(model, SETTINGS)
    before = engine.run([Request(PROMPT, GREEDY)])  # its prompt is known now
    engine.add(Request(PROMPT, GREEDY))
    engine.step()  # and a text is being made
    wrapped.zero_grad_buffer()
    tokens = torch.randint(96, (2, 33), generator=torch.Generator().manual_seed(rank))
    positions = torch.arange(32).expand(2, 32)
    wrapped(tokens[:, :-1], positions, None, labels=tokens[:, 1:]).float().mean().backward()
    finalize_model_grads([wrapped])
    moved, _, _ = optimizer.step()
    assert moved
    under_way = []
    while engine.busy:
        under_way += [p.completion for p in engine.step() if p.completion]
    answers = [*before, *under_way, *engine.run([Request(PROMPT, GREEDY)])]
    torch.save(model.state_dict(), folder / f"{rank}.pt")
    return [(answer.tokens, answer.log_probs, answer.versions) for answer in answers]


def test_a_step_of_megatrons_optimizer_is_found(world, tmp_path):
    of_ranks = run_ranks(2, answers_around_a_step, tmp_path, scratch=tmp_path)
    for rank, (before, under_way, after) in enumerate(of_ranks):
        fresh = build_model(CONFIG, dtype=torch.bfloat16)
        fresh.load_state_dict(torch.load(tmp_path / f"{rank}.pt"))
        first = under_way[0][0]
        assert under_way[2] == [0] + [1] * 11
        assert after[2] == [1] * 12
        assert after[0] != before[0]
        rest = replace(GREEDY, max_tokens=11)
        engine = Engine(fresh, SETTINGS)  # one, so that the second finds the prompt known too
        expected = [
            *engine.run([Request((*PROMPT, first), rest)]),
            *engine.run([Request(PROMPT, GREEDY)]),
        ]
        assert under_way[0][1:] == expected[0].tokens
        assert after[0] == expected[1].tokens
        torch.testing.assert_close(under_way[1][1:], expected[0].log_probs, rtol=0, atol=1e-5)
        # From a prompt that another text brought: attention rounds to 8 bits in another order.
        torch.testing.assert_close(after[1], expected[1].log_probs, rtol=0, atol=0.05)
        assert abs(after[1][0] - before[1][0]) > 0.2
    assert of_ranks[0] == of_ranks[1]
