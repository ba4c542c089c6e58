"""Proof of schedules: legal changes pass, illegal ones are caught by rank, slot and reason."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3_plugin.errors import UserError
from dsv3_plugin.schedules.actions import (
    BACKWARD,
    FORWARD,
    INPUT,
    WEIGHT,
    Action,
    Compute,
    Overlap,
    Schedule,
    Transfer,
    compute_only,
    parse_csv,
)
from dsv3_plugin.schedules.dualpipe import dualpipe
from dsv3_plugin.schedules.dualpipe_v import dualpipe_v
from dsv3_plugin.schedules.interleaved import interleaved
from dsv3_plugin.schedules.one_f_one_b import one_f_one_b
from dsv3_plugin.schedules.validate import (
    check_transfers,
    validate,
    with_transfers,
)
from dsv3_plugin.schedules.zb1p import zb1p
from dsv3_plugin.schedules.zbv import zbv
from tests.schedules import torch_schedules

BASES = [
    one_f_one_b(3, 5),
    interleaved(2, 4, 2),
    interleaved(3, 6, 2, overlap=True),
    zb1p(3, 6),
    zbv(3, 7),
    dualpipe(4, 8),
    dualpipe_v(2, 5),
    dualpipe_v(3, 7),
]
SEEDS = st.integers(0, 2**32 - 1).map(random.Random)


def of_text(text: str) -> Schedule:
    return compute_only("by hand", parse_csv(text, "by hand"))


def of_rows(rows: list[list[Action]]) -> Schedule:
    return Schedule("mutant", tuple(tuple(row) for row in rows))


def plain_rows(schedule: Schedule) -> list[list[Action]]:
    return [[action for _, action in schedule.actions(rank)] for rank in range(schedule.pp)]


def find(rows, rng, wanted):
    """A random (rank, slot) whose action is wanted; None where there is none."""
    places = [(r, i) for r, row in enumerate(rows) for i, a in enumerate(row) if wanted(r, i, a)]
    return rng.choice(places) if places else None


def is_kind(*kinds):
    return lambda rank, slot, action: isinstance(action, Compute) and action.kind in kinds


# Changes that keep a schedule right whatever it was, each for a reason of its own.


def split_backward(rows, rng):
    """A whole backward is its two parts in a row."""
    if place := find(rows, rng, is_kind(BACKWARD)):
        rank, slot = place
        part = rows[rank][slot]
        rows[rank][slot : slot + 1] = [part._replace(kind=INPUT), part._replace(kind=WEIGHT)]


def join_backward(rows, rng):
    """Nobody waits for a weight gradient, so one that follows its input gradient may join it."""

    def joinable(rank, slot, action):
        row = rows[rank]
        return (
            isinstance(action, Compute)
            and action.kind == INPUT
            and slot + 1 < len(row)
            and row[slot + 1] == action._replace(kind=WEIGHT)
        )

    if place := find(rows, rng, joinable):
        rank, slot = place
        rows[rank][slot : slot + 2] = [rows[rank][slot]._replace(kind=BACKWARD)]


def put_off_weight(rows, rng):
    """Nobody waits for a weight gradient."""
    if place := find(rows, rng, is_kind(WEIGHT)):
        rank, slot = place
        row = rows[rank]
        row.insert(rng.randint(slot, len(row) - 1), row.pop(slot))


def take_pair_apart(rows, rng):
    """A pair waits for what both its halves need, and they do not need each other."""
    if place := find(rows, rng, lambda rank, slot, action: isinstance(action, Overlap)):
        rank, slot = place
        halves = list(rows[rank][slot].parts)
        rng.shuffle(halves)
        rows[rank][slot : slot + 1] = halves


def rename_micro_batches(rows, rng):
    """Micro-batches of one pipeline are alike."""
    schedule = of_rows(rows)
    names = {}
    for stream in schedule.streams:
        numbers = sorted(schedule.stage_micro_batches[stream[0]])
        names |= dict(zip(numbers, rng.sample(numbers, len(numbers)), strict=True))

    def renamed(part):
        return part._replace(micro_batch=names[part.micro_batch])

    for row in rows:
        row[:] = [
            Overlap(*map(renamed, a.parts)) if isinstance(a, Overlap) else renamed(a) for a in row
        ]


def leave_idle_cells(rows, rng):
    """Idle cells align the text and mean nothing."""
    row = rng.choice(rows)
    row.insert(rng.randint(0, len(row)), None)


LEGAL = [
    split_backward,
    join_backward,
    put_off_weight,
    take_pair_apart,
    rename_micro_batches,
]


@given(st.sampled_from(BASES), st.lists(st.sampled_from(LEGAL), max_size=8), SEEDS)
@settings(max_examples=60)
def test_a_legal_change_passes(base, changes, rng):
    rows = plain_rows(base)
    for change in changes:
        change(rows, rng)
    leave_idle_cells(rows, rng)
    validate(of_rows(rows))


# Changes that break a schedule whatever it was.


def drop(rows, rng):
    rank, slot = find(rows, rng, lambda *_: True)
    action = rows[rank].pop(slot)
    if isinstance(action, Overlap):  # leave one half
        rows[rank].insert(slot, rng.choice(action.parts))


def repeat(rows, rng):
    rank, slot = find(rows, rng, lambda *_: True)
    rows[rank].insert(rng.randint(0, len(rows[rank])), rng.choice(rows[rank][slot].parts))


def repeat_half_a_backward(rows, rng):
    rank, slot = find(
        rows, rng, lambda r, i, a: any(part.kind in (BACKWARD, INPUT) for part in a.parts)
    )
    part = next(p for p in rows[rank][slot].parts if p.kind in (BACKWARD, INPUT))
    kind = rng.choice([INPUT, WEIGHT]) if part.kind == BACKWARD else BACKWARD
    rows[rank].insert(slot + 1, part._replace(kind=kind))


def move_to_another_rank(rows, rng):
    rank, slot = find(rows, rng, lambda r, i, a: len(rows[r]) > 1)
    action = rows[rank].pop(slot)
    other = rng.choice([r for r in range(len(rows)) if r != rank])
    rows[other].insert(rng.randint(0, len(rows[other])), action)


def backward_before_forward(rows, rng):
    rank, slot = find(
        rows, rng, lambda r, i, a: any(part.kind in (BACKWARD, INPUT) for part in a.parts)
    )
    part = next(p for p in rows[rank][slot].parts if p.kind in (BACKWARD, INPUT))
    forward = part._replace(kind=FORWARD)
    rows[rank].insert(
        next(i for i, a in enumerate(rows[rank]) if forward in a.parts), rows[rank].pop(slot)
    )


def weight_before_input(rows, rng):
    place = find(rows, rng, is_kind(WEIGHT))
    if place is None:
        return drop(rows, rng)
    rank, slot = place
    gradient = rows[rank][slot]._replace(kind=INPUT)
    rows[rank].insert(rows[rank].index(gradient), rows[rank].pop(slot))


def pair_dependent_halves(rows, rng):
    """A forward beside the backward of its own micro-batch."""
    place = find(rows, rng, is_kind(BACKWARD))
    if place is None:
        return drop(rows, rng)
    rank, slot = place
    backward = rows[rank].pop(slot)
    forward = backward._replace(kind=FORWARD)
    for row in rows:
        for at, action in enumerate(row):
            if action == forward:
                row[at] = Overlap(forward, backward)
                return None
    return None  # the forward is in a pair: the backward is missing now


def skip_a_stage(rows, rng):
    """Renumber the last stage, which leaves a hole."""
    last = max(part.stage for row in rows for a in row for part in a.parts)

    def renumbered(part):
        return part._replace(stage=last + 1) if part.stage == last else part

    for row in rows:
        row[:] = [
            Overlap(*map(renumbered, a.parts)) if isinstance(a, Overlap) else renumbered(a)
            for a in row
        ]


ILLEGAL = [
    drop,
    repeat,
    repeat_half_a_backward,
    move_to_another_rank,
    backward_before_forward,
    weight_before_input,
    pair_dependent_halves,
]


@given(
    st.sampled_from(BASES),
    st.lists(st.sampled_from(LEGAL), max_size=3),
    st.sampled_from(ILLEGAL),
    SEEDS,
)
@settings(max_examples=150)
def test_an_illegal_change_is_caught_by_rank_slot_and_reason(base, before, change, rng):
    rows = plain_rows(base)
    for legal in before:
        legal(rows, rng)
    change(rows, rng)
    with pytest.raises(UserError, match=r"rank \d+, slot \d+: \S+ \w+"):
        validate(of_rows(rows))


@given(st.sampled_from(BASES))
def test_a_hole_in_the_stages_is_caught(base):
    rows = plain_rows(base)
    skip_a_stage(rows, random.Random(0))
    with pytest.raises(UserError, match="no rank holds stage"):
        validate(of_rows(rows))


@given(st.sampled_from([b for b in BASES if len(b.streams) == 1]), st.integers(1, 3), SEEDS)
@settings(max_examples=150)
def test_torch_has_the_same_verdict_on_swaps(base, swaps, rng):
    """Any two actions of a rank exchanged: right, out of order or deadlocked, as torch says."""
    rows = plain_rows(base)
    for _ in range(swaps):
        row = rng.choice(rows)
        a, b = rng.randrange(len(row)), rng.randrange(len(row))
        row[a], row[b] = row[b], row[a]
    text = [[str(action) for action in row] for row in rows]
    schedule = of_rows(rows)
    if torch_schedules.runs(text, base.stage_ranks, base.num_micro_batches):
        validate(schedule)
    else:
        with pytest.raises(UserError, match="slot"):
            validate(schedule)


def test_a_deadlock_is_told_as_a_circle():
    """Rank 0 wants the gradient of 1 before it makes 0; rank 1 wants 0 first."""
    with pytest.raises(UserError, match="deadlock") as error:
        validate(of_text("0F1,0B1,0F0,0B0\n1F0,1F1,1B1,1B0\n"))
    assert "rank 0, slot 1: 0B1 waits for 1B1 at rank 1, slot 2" in str(error.value)
    assert "rank 1, slot 0: 1F0 waits for 0F0 at rank 0, slot 2" in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0F0,0B0,0F1\n1F0,1B0,1F1,1B1\n", r"rank 0, slot 2: 0F1 has no backward: 0B1"),
        ("0F0,0B0,0B1\n1F0,1B0,1F1,1B1\n", r"slot 2: 1F1 waits to receive from 0F1, .* nobody"),
        ("0F0,0B0\n1F0,1I0\n", r"rank 1, slot 1: 1I0 has no weight gradient: 1W0 is missing"),
        ("0F0,0B0\n1F0,1W0\n", r"rank 1, slot 1: 1W0 has no input gradient: 1I0 is missing"),
        ("0F0,0B0\n1B0\n", r"rank 1, slot 0: 1B0 has no forward: 1F0 is missing"),
        ("0F0,0B0,0W0\n1F0,1B0\n", r"rank 0, slot 1: 0B0 is a whole backward, and 0W0"),
        ("0F0,0B0,0F0\n1F0,1B0\n", r"rank 0, slot 2: 0F0 was computed already in slot 0"),
        ("0F0,0B0\n1F0,1B0,0F1\n", r"rank 1, slot 2: 0F1 is of stage 0, which rank 0 holds"),
        ("0F0,0B0\n1F0,,1B0\n\n2F0,2B0\n", r"rank 2 computes nothing"),
        ("0F0,0B0\n2F0,2B0\n", r"no rank holds stage 1"),
        ("0F0,0B0,0F2,0B2\n", r"no rank computes micro-batch 1"),
        ("0B0,0F0\n", r"rank 0, slot 0: 0B0 needs 0F0, which only comes in slot 1"),
        ("0F0,0W0,0I0\n", r"rank 0, slot 1: 0W0 needs 0I0, which only comes in slot 2"),
        ("(0F0;0B0)OVERLAP_F_B\n", r"rank 0, slot 0: 0B0 needs 0F0, which only comes in the same"),
    ],
)
def test_what_is_wrong_is_said(text, words):
    with pytest.raises(UserError, match=words):
        validate(of_text(text))


# Sends and receives.


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
def test_torch_runs_our_sends_and_receives(base):
    rows = with_transfers(base)
    if len(base.streams) == 1:
        text = [[str(cell) for cell in row] for row in rows]
        assert torch_schedules.runs_with_transfers(text, base.stage_ranks)
    transfers = [cell for row in rows for cell in row if isinstance(cell, Transfer)]
    assert len(set(transfers)) == len(transfers)
    assert {t.partner for t in transfers} == set(transfers)


@given(st.sampled_from(BASES), SEEDS)
@settings(max_examples=60)
def test_a_lost_or_misplaced_message_is_caught(base, rng):
    rows = [list(row) for row in with_transfers(base)]
    rank, slot = find(rows, rng, lambda r, i, cell: isinstance(cell, Transfer))
    transfer = rows[rank].pop(slot)
    if rng.random() < 0.5:
        # Past the next message of the same kind between the same two ranks, or else lost.
        later = [
            i
            for i in range(slot, len(rows[rank]))
            if isinstance(rows[rank][i], Transfer)
            and rows[rank][i].kind == transfer.kind
            and base.stage_ranks[rows[rank][i].partner.stage]
            == base.stage_ranks[transfer.partner.stage]
        ]
        if later:
            rows[rank].insert(later[0] + 1, transfer)
    with pytest.raises(UserError, match=r"slot \d+|is missing"):
        check_transfers(base, rows)
