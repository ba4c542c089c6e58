"""A sample is the same in any pack, under every schedule: loss, gradients, routers' counts.

Each sample alone, in a row of its own and in one process, is the reference.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv3_plugin.schedules.dualpipe import dualpipe
from dsv3_plugin.schedules.dualpipe_v import dualpipe_v
from dsv3_plugin.schedules.one_f_one_b import one_f_one_b
from dsv3_plugin.schedules.zbv import zbv
from tests.gloo_ranks import run_ranks
from tests.pipeline.packed import Sample, Seen, alone, in_packs

ROOM = 32


def drawn(seed: int, lengths: Sequence[int]) -> list[Sample]:
    """Samples of these lengths, with some tokens of each learned."""
    draw = torch.Generator().manual_seed(seed)
    samples = []
    for length in lengths:
        ids = torch.randint(64, (length,), generator=draw).tolist()
        learned = torch.randint(2, (length,), generator=draw).tolist()
        samples.append((ids, [0, *learned[1:-1], 1]))
    return samples


SPARSE: Sample = ([7, 3, 60, 12, 9, 33, 41, 5, 18], [0, 0, 1, 0, 0, 0, 0, 0, 0])
"""Of two ranks that share it, one has no token in the loss."""

PACKS = [drawn(1, (5, 9, 8)), drawn(2, (24,)), drawn(3, (3, 4, 4, 6)), [SPARSE]]
"""Full rows, one of a single sample, and some with padding behind."""

RECOMPUTED = {
    "recompute_granularity": "selective",
    "recompute_modules": ["moe", "core_attn", "mla_up_proj", "layernorm"],
}

CASES: list[tuple[str, int, dict[str, Any]]] = [
    ("1f1b", 1, {}),
    ("1f1b", 1, {"together_": 4}),
    ("1f1b", 2, {}),
    ("1f1b", 3, {}),
    ("dualpipe", 2, {"expert": 2}),
    ("dualpipe_v", 2, RECOMPUTED),
    ("zbv", 2, {"context": 2}),
]
SCHEDULES = {"1f1b": one_f_one_b, "dualpipe": dualpipe, "dualpipe_v": dualpipe_v, "zbv": zbv}


def on_ranks(rank: int, packs: list[list[Sample]], name: str, pp: int, how: dict[str, Any]) -> Any:
    import dsv3_plugin

    dsv3_plugin.register()
    reference = alone([*itertools.chain(*packs)])
    schedule = SCHEDULES[name](pp, len(packs) // how.get("together_", 1))
    return reference, in_packs(packs, ROOM, schedule, **how)


@pytest.mark.parametrize(("name", "pp", "how"), CASES)
def test_a_sample_is_in_a_pack_what_it_is_alone(
    name: str, pp: int, how: dict[str, Any], tmp_path: Path
) -> None:
    world = pp * how.get("expert", 1) * how.get("context", 1)
    answers = run_ranks(world, on_ranks, PACKS, name, pp, how, scratch=tmp_path, timeout_s=300)
    reference = answers[0][0]
    trained: set[str] = set()
    places: dict[str, set[int]] = {key: set() for key in reference["samples"]}
    for _, got in answers:
        for layer, counts in got["counts"].items():
            assert torch.equal(counts, reference["counts"][layer]), layer
        for key, gradient in got["gradients"].items():
            part, parts = got["parts"][key]
            expected = reference["gradients"][key].chunk(parts)[part]
            error = (gradient - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
            assert error < 1e-5, f"{key} differs by {error:.2e}"
        trained |= got["gradients"].keys()
        for key, seen in got["samples"].items():
            must_be_the_same(reference["samples"][key], seen)
            places[key] |= {*seen.positions.tolist()}
        total = sum(float(report[0]) for report in reference["reports"])
        if got["reports"]:
            assert sum(float(r[0]) for r in got["reports"]) == pytest.approx(total, rel=1e-6)
            assert sum(got["drafts"]).tolist() == accepted(reference["samples"])
    assert trained == reference["gradients"].keys()
    for key, seen in reference["samples"].items():
        assert places[key] == {*range(len(seen.positions))}, key


def must_be_the_same(expected: Seen, got: Seen) -> None:
    """Logits and losses of a sample, where it has labels, to 1e-5."""
    for name in ("losses", "logits", "ahead_losses", "ahead_logits"):
        last = len(expected.positions) - (2 if name.startswith("ahead") else 1)
        here = got.positions < last
        wanted = getattr(expected, name)[got.positions[here]]
        torch.testing.assert_close(getattr(got, name)[here], wanted, rtol=1e-5, atol=1e-5)


def accepted(samples: dict[str, Seen]) -> list[float]:
    """How many first drafts are the model's own choice of a token that is learned, in percent, and
    of how many."""
    right = total = 0
    for seen in samples.values():
        counts = seen.losses[1:] > 0
        drafts, own = seen.ahead_logits[:-1].argmax(-1), seen.logits[1:].argmax(-1)
        right += int(((drafts == own) & counts).sum())
        total += int(counts.sum())
    assert 0 < right < total
    return [100.0 * right, total]
