"""What texts take while they are made, as storages that are alive, beside what the formula says."""

import pytest
import torch

from dsv3_plugin.inference import batch
from dsv3_plugin.inference.cache import CacheShape
from dsv3_plugin.inference.engine import Engine, EngineSettings
from dsv3_plugin.inference.requests import Request, SamplingParameters
from dsv3_plugin.model.build import build_model
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


def test_answers_that_share_a_prompt_are_read_so_many_at_once(world, monkeypatch):
    model = build_model(CONFIG)
    oracles.randomize(model, 6)
    *_, at_once, answers = measured(model, 1, n=16)
    monkeypatch.setattr(batch, "POSITIONS_AT_ONCE", 4 * POSITIONS + 63)
    *_, in_parts, same = measured(model, 1, n=16)
    assert same == answers
    formula = 4 * POSITIONS * (WIDTH + 2 * HEADS) * 4
    assert formula <= in_parts <= 1.5 * formula < at_once
    monkeypatch.setattr(batch, "POSITIONS_AT_ONCE", 1)  # one text is read whole all the same
    assert measured(model, 1, n=16)[3] == answers
