"""Packs with every case in them, what a rank computes of them, and how near it must come.

Apart from their tests on gloo ranks, which make their process a CPU host: a GPU's take them too.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from dsv3_plugin.schedules.dualpipe import dualpipe
from dsv3_plugin.schedules.dualpipe_v import dualpipe_v
from dsv3_plugin.schedules.one_f_one_b import one_f_one_b
from dsv3_plugin.schedules.zbv import zbv
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

SINGLE: Sample = ([11], [0])
"""Of one token, which predicts nothing."""

PACKS = [[*drawn(1, (5, 9, 8)), SINGLE], drawn(2, (24, 4, 4)), [SPARSE], []]
"""A full row, one of a single sample, some with padding behind, and one of padding alone, as the
last batch of a run has."""

SCHEDULES = {"1f1b": one_f_one_b, "dualpipe": dualpipe, "dualpipe_v": dualpipe_v, "zbv": zbv}


def each_alone(rank: int, packs: list[list[Sample]]) -> Any:
    """The reference, in a world of one rank."""
    import dsv3_plugin

    dsv3_plugin.register()
    return alone([*itertools.chain(*packs)])


def on_ranks(rank: int, packs: list[list[Sample]], name: str, pp: int, how: dict[str, Any]) -> Any:
    import dsv3_plugin

    dsv3_plugin.register()
    schedule = SCHEDULES[name](pp, len(packs) // how.get("together_", 1))
    return in_packs(packs, ROOM, schedule, **how)


def must_be_the_same(expected: Seen, got: Seen) -> None:
    """Logits and losses of a sample, where it has labels, to 1e-5."""
    for name in ("losses", "logits", "ahead_losses", "ahead_logits"):
        last = len(expected.positions) - (2 if name.startswith("ahead") else 1)
        here = got.positions < last
        wanted = getattr(expected, name)[got.positions[here]]
        torch.testing.assert_close(getattr(got, name)[here], wanted, rtol=1e-5, atol=1e-5)
