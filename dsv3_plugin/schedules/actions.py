"""A pipeline schedule is data: for each rank, the list of what it computes, in order.

An action is one of four computations of one stage on one micro-batch, `0F7` (forward), `7B3` (full
backward), `3I2` (gradient of the input), `3W2` (gradient of the weights), or a forward and a full
backward that run at the same time and hide each other's communication: `(0F7;7B3)OVERLAP_F_B`. This
is the text form of torch.distributed.pipelining, so CSV files travel both ways.

A `Schedule` says nothing else. Which rank holds which stage, how many pipelines there are (DualPipe
has two, one per direction) and who sends what to whom all follow from the rows. `messages.py`
derives the sends and receives, `validate.py` proves the whole, `simulate.py` times it.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from dsv3_plugin.errors import UserError

FORWARD, BACKWARD, INPUT, WEIGHT = "F", "B", "I", "W"


class Compute(NamedTuple):
    """One computation of one stage on one micro-batch; prints as `0F7`."""

    stage: int
    kind: str  # FORWARD, BACKWARD (input and weight in one), INPUT or WEIGHT
    micro_batch: int

    @property
    def parts(self) -> tuple["Compute", ...]:
        return (self,)

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.micro_batch}"


class Overlap(NamedTuple):
    """A forward and a full backward advancing together; prints as `(0F7;7B3)OVERLAP_F_B`."""

    forward: Compute
    backward: Compute

    @property
    def parts(self) -> tuple[Compute, ...]:
        return (self.forward, self.backward)

    def __str__(self) -> str:
        return f"({self.forward};{self.backward})OVERLAP_F_B"


class Transfer(NamedTuple):
    """One side of a message between stages; prints as `0SEND_F7`, `1RECV_F7`, `7SEND_B3`, ...

    `stage` is the stage whose rank sends or receives: stage s sends F to s + 1 and B to s - 1.
    """

    stage: int
    kind: str  # "SEND_F", "RECV_F", "SEND_B" or "RECV_B"
    micro_batch: int

    @property
    def sends(self) -> bool:
        return self.kind.startswith("SEND")

    @property
    def partner(self) -> "Transfer":
        """The same message seen from the other end."""
        direction = self.kind[-1]
        downstream = (direction == FORWARD) == self.sends
        kind = ("RECV_" if self.sends else "SEND_") + direction
        return Transfer(self.stage + (1 if downstream else -1), kind, self.micro_batch)

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.micro_batch}"


Action = Compute | Overlap
Row = tuple[Action | None, ...]


@dataclass(frozen=True)
class Schedule:
    """What every rank computes, in order.

    name: what it is called in tables and titles.
    rows: one row per rank; `None` is an idle cell, which only aligns the text.
    """

    name: str
    rows: tuple[Row, ...]

    @property
    def pp(self) -> int:
        """Number of ranks (devices of the pipeline)."""
        return len(self.rows)

    def actions(self, rank: int) -> Iterator[tuple[int, Action]]:
        """(slot, action) of a rank in order, idle cells left out; slot is the column in the CSV."""
        return ((slot, action) for slot, action in enumerate(self.rows[rank]) if action is not None)

    def parts(self) -> Iterator[tuple[int, int, Compute]]:
        """(rank, slot, computation) of the whole schedule, overlapped pairs taken apart."""
        for rank in range(self.pp):
            for slot, action in self.actions(rank):
                for part in action.parts:
                    yield rank, slot, part

    @cached_property
    def stage_ranks(self) -> dict[int, int]:
        """Rank that holds each stage (the first that names it; `validate` refuses a second)."""
        ranks: dict[int, int] = {}
        for rank, _, part in self.parts():
            ranks.setdefault(part.stage, rank)
        return dict(sorted(ranks.items()))

    @property
    def num_stages(self) -> int:
        return max(self.stage_ranks, default=-1) + 1

    @cached_property
    def stage_micro_batches(self) -> dict[int, frozenset[int]]:
        """Micro-batches that each stage touches."""
        seen: dict[int, set[int]] = {stage: set() for stage in range(self.num_stages)}
        for _, _, part in self.parts():
            seen[part.stage].add(part.micro_batch)
        return {stage: frozenset(micro_batches) for stage, micro_batches in seen.items()}

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of the whole step; both directions together."""
        return len(frozenset().union(*self.stage_micro_batches.values()))

    @cached_property
    def streams(self) -> tuple[range, ...]:
        """The pipelines: runs of consecutive stages that hand micro-batches on to each other.

        A stage that shares no micro-batch with the one before starts another pipeline: DualPipe is
        stages 0..P-1 for the first half of the micro-batches and P..2P-1, mirrored, for the rest.
        """
        starts = [
            stage
            for stage in range(self.num_stages)
            if stage == 0
            or self.stage_micro_batches[stage].isdisjoint(self.stage_micro_batches[stage - 1])
        ]
        ends = [*starts[1:], self.num_stages]
        return tuple(range(a, b) for a, b in zip(starts, ends, strict=True))

    @cached_property
    def first_stages(self) -> frozenset[int]:
        """Stages that read a batch, receive no activation and send no gradient."""
        return frozenset(stream[0] for stream in self.streams)

    @cached_property
    def last_stages(self) -> frozenset[int]:
        """Stages that compute the loss, send no activation and receive no gradient."""
        return frozenset(stream[-1] for stream in self.streams)


def result(part: Compute) -> Compute | None:
    """The name under which others depend on `part`: F itself, a B or an I as B, nothing for a W."""
    if part.kind == WEIGHT:
        return None
    return Compute(part.stage, BACKWARD, part.micro_batch) if part.kind == INPUT else part


def dependencies(schedule: Schedule, part: Compute) -> tuple[Compute, ...]:
    """The results that `part` needs, named as `result` names them.

    F(s, m) needs F(s-1, m); B and I(s, m) need F(s, m) and the gradient of (s+1, m); W needs its I.
    """
    stage, kind, micro_batch = part
    if kind == FORWARD:
        if stage in schedule.first_stages:
            return ()
        return (Compute(stage - 1, FORWARD, micro_batch),)
    if kind == WEIGHT:
        return (Compute(stage, BACKWARD, micro_batch),)
    forward = Compute(stage, FORWARD, micro_batch)
    if stage in schedule.last_stages:
        return (forward,)
    return (forward, Compute(stage + 1, BACKWARD, micro_batch))


def sent_to(schedule: Schedule, part: Compute) -> int | None:
    """The rank that the result of `part` travels to; None if it goes nowhere or stays where it is.

    Activations go to stage s + 1, gradients to stage s - 1. At the fold of a V both are one rank's.
    """
    if part.kind == WEIGHT:
        return None
    ends, step = (schedule.last_stages, 1) if part.kind == FORWARD else (schedule.first_stages, -1)
    if part.stage in ends:
        return None
    rank, peer = (schedule.stage_ranks[stage] for stage in (part.stage, part.stage + step))
    return None if peer == rank else peer


def sending(part: Compute) -> Transfer:
    """The send of what `part` makes: an activation as SEND_F, a gradient as SEND_B."""
    kind = "SEND_F" if part.kind == FORWARD else "SEND_B"
    return Transfer(part.stage, kind, part.micro_batch)


_PART = re.compile(r"(\d{1,9})([FBIW])(\d{1,9})")
_TRANSFER = re.compile(r"(\d{1,9})((?:SEND|RECV)_[FB])(\d{1,9})")
_OVERLAP = re.compile(r"\((.*)\)OVERLAP_F_B")
# What torch.distributed.pipelining adds for FSDP and for gradient reduction; no part of the order.
_HOUSEKEEPING = re.compile(r"\d+(UNSHARD|RESHARD|REDUCE_GRAD)")


def parse_cell(text: str) -> Action | Transfer | None:
    """One cell of a CSV file; None for an idle cell. Raises `UserError` with the bare reason."""
    text = text.strip()
    if not text or _HOUSEKEEPING.fullmatch(text):
        return None
    if match := _PART.fullmatch(text):
        return Compute(int(match[1]), match[2], int(match[3]))
    if match := _TRANSFER.fullmatch(text):
        return Transfer(int(match[1]), match[2], int(match[3]))
    if match := _OVERLAP.fullmatch(text):
        halves = [parse_cell(half) for half in match[1].split(";")]
        if [getattr(half, "kind", None) for half in halves] != [FORWARD, BACKWARD]:
            raise UserError(f"'{text}' must pair one forward with one full backward, in this order")
        return Overlap(*halves)
    if len(_PART.findall(text)) > 1:
        raise UserError(
            f"'{text}' puts several computations in one cell; "
            "an overlapped pair is written (0F7;7B3)OVERLAP_F_B"
        )
    raise UserError(f"'{text}' is no action; actions look like 0F7, 7B3, 3I2, 3W2")


def parse_csv(text: str, name: str) -> list[list[Action | Transfer | None]]:
    """Cells of a schedule in text form, one row per rank; `name` (of the file) is for errors.

    Empty lines at the end are no ranks.
    """
    rows = []
    try:
        table = list(csv.reader(io.StringIO(text.rstrip("\r\n\t "))))
    except csv.Error as error:
        raise UserError(f"{name} is no CSV: {error}") from error
    for rank, cells in enumerate(table):
        row = []
        for slot, cell in enumerate(cells):
            try:
                row.append(parse_cell(cell))
            except UserError as error:
                raise UserError(f"{name}: rank {rank}, slot {slot}: {error}") from None
        rows.append(row)
    if not any(cell is not None for row in rows for cell in row):
        raise UserError(f"{name} holds no actions; write one line per rank, such as 0F0,0B0")
    return rows


def compute_only(name: str, rows: Iterable[Iterable[Action | Transfer | None]]) -> Schedule:
    """The schedule in rows that may hold transfers; their cells become idle, so slots keep."""
    return Schedule(
        name,
        tuple(tuple(None if isinstance(c, Transfer) else c for c in row) for row in rows),
    )


def csv_text(rows: Iterable[Iterable[Action | Transfer | None]]) -> str:
    """The text form: one line per rank, one cell per action, idle cells empty."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(
        ["" if cell is None else str(cell) for cell in row] for row in rows
    )
    return out.getvalue()
