"""What texts take while they are made, as storages that are alive, beside what the formula says."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from dsv3_plugin.inference import batch
from dsv3_plugin.inference.cache import CacheShape
from dsv3_plugin.inference.engine import Engine, EngineSettings
from dsv3_plugin.inference.requests import Request, SamplingParameters
from dsv3_plugin.model.build import build_model
from dsv3_plugin.planner.answering import Answering
from dsv3_plugin.planner.memory.answering import engine_works_with
from dsv3_plugin.planner.stages import Stage
from tests import oracles
from tests.live_memory import LiveStorages

CONFIG = oracles.model_config(
    max_position_embeddings=256, moe_ffn_hidden_size=24, moe_shared_expert_intermediate_size=48
)
LENGTH, PAGES = 100, 2  # of a prompt, and of its text
POSITIONS = PAGES * 64
HEADS, WIDTH = CONFIG.num_attention_heads, 16 + 8


def measured(model, count: int, n: int = 1) -> tuple[int, int, int, list[list[int]]]:
    """Texts decoded at once.

    Returns:
        Bytes of the cache, of all that the engine keeps between steps, and of what else there is
        at once in a step of decoding; and the answers.
    """
    pages = count * PAGES if n == 1 else 1 + n  # answers to one prompt share its whole page
    budget = pages * CacheShape.of(model.config).page_bytes
    engine = Engine(model, EngineSettings(budget))
    sampling = SamplingParameters(max_tokens=4, temperature=1.0, n=n, seed=1)
    draw = torch.Generator().manual_seed(1)
    prompts = torch.randint(96, (count, LENGTH), generator=draw).tolist()
    live = LiveStorages([*model.parameters(), *model.buffers()])
    with live.watching():
        engine.add_all(Request(tuple(prompt), sampling) for prompt in prompts)
        done, transient = [], 0
        while engine.busy:
            computed, live.most = engine.counters.computed, 0
            done += [p.completion for p in engine.step() if p.completion]
            if engine.counters.computed - computed == count * n:
                kept = live.kept()
                transient = max(transient, live.most - kept)
    assert engine.cache_bytes == budget
    return budget, kept, transient, [answer.tokens for answer in done]


def planned(dtype: torch.dtype, count: int, n: int = 1, **changes: int) -> int:
    """What a plan says of such a step."""
    answering = Answering(
        prompts=count, n=n, prompt=LENGTH, tokens=4, made=4, in_step=2048, drafts=0,
        cache_bytes=None, steps=1, epochs=1, passes=0, reference=False, replay=False,
    )  # fmt: skip
    setting = SimpleNamespace(
        data=1, tensor=1, width=dtype.itemsize, model=CONFIG,
        dtype="fp32" if dtype is torch.float32 else "bf16",
    )  # fmt: skip
    return engine_works_with(setting, replace(answering, **changes), [Stage(moe=1)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_of_decoding_takes_the_cache_and_what_it_reads_of_one_layer(world, dtype):
    model = build_model(CONFIG, dtype=dtype)
    oracles.randomize(model, 6)
    small, large = measured(model, 1), measured(model, 16)
    # Of what is kept the cache alone grows with the texts: the rest is of the model's positions.
    assert abs((large[1] - large[0]) - (small[1] - small[0])) <= 1024
    # A layer's rows out of their pages, and for each of them and head: scores before the softmax
    # and behind it, or where torch keeps none what may be seen, as bool and in the model's type.
    for_head = 2 * 4 if dtype is torch.float32 else 1 + 2
    formula = 16 * POSITIONS * (WIDTH * dtype.itemsize + HEADS * for_head)
    assert formula <= large[2] <= 1.2 * formula
    assert planned(dtype, 16) <= large[2] <= 1.2 * planned(dtype, 16)


def test_a_long_text_is_read_in_parts_with_keys_and_values_of_all_its_heads(world):
    """As a prompt, or again where it is gone on with. On a CPU values are made as wide as keys,
    which is not planned."""
    length, in_step = 1500, 48
    config = CONFIG.model_copy(update={"max_position_embeddings": 2048})
    model = build_model(config, dtype=torch.bfloat16)
    oracles.randomize(model, 6)
    settings = EngineSettings(24 * CacheShape.of(model.config).page_bytes, tokens_in_step=in_step)
    engine = Engine(model, settings)
    live, most = LiveStorages([*model.parameters(), *model.buffers()]), 0
    with live.watching():
        engine.add(Request((5,) * length, SamplingParameters(max_tokens=1)))
        while engine.busy:
            live.most = 0
            engine.step()
            most = max(most, live.most - live.kept())
    once, again = (
        planned(torch.bfloat16, 1, in_step=in_step, **text)
        for text in ({"prompt": length}, {"prompt": 100, "tokens": 1400, "made": 50})
    )
    assert once == again
    assert once <= most <= 1.2 * once


def test_answers_that_share_a_prompt_are_read_so_many_at_once(world, monkeypatch):
    model = build_model(CONFIG)
    oracles.randomize(model, 6)
    *_, at_once, answers = measured(model, 1, n=16)
    monkeypatch.setattr(batch, "POSITIONS_AT_ONCE", 4 * POSITIONS + 63)
    *_, in_parts, same = measured(model, 1, n=16)
    assert same == answers
    monkeypatch.setattr("dsv3_plugin.planner.answering.READ_AT_ONCE", batch.POSITIONS_AT_ONCE)
    assert 0.7 * in_parts <= planned(torch.float32, 1, n=16) <= 1.1 * in_parts
    formula = 4 * POSITIONS * (WIDTH + 2 * HEADS) * 4
    assert formula <= in_parts <= 1.5 * formula < at_once
    monkeypatch.setattr(batch, "POSITIONS_AT_ONCE", 1)  # one text is read whole all the same
    assert measured(model, 1, n=16)[3] == answers
