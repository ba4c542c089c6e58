"""How much a rank holds at once under a schedule; it depends on the order of its actions alone.

`rank_orders` goes through a schedule once and keeps of each rank the few moments at which it could
hold most; `fullest` then answers for any costs of its stages, as a search asks it for thousands.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import ge
from typing import NamedTuple

from dsv3_plugin.planner.memory.activations import StageBytes
from dsv3_plugin.schedules.actions import (
    BACKWARD,
    FORWARD,
    INPUT,
    WEIGHT,
    Action,
    Compute,
    Schedule,
)
from dsv3_plugin.schedules.placement import Placement


class Held(NamedTuple):
    """Bytes of a rank at a moment of the schedule.

    Attributes:
        layers: of activations, what a layer works with included.
        logits: of the head and the loss.
    """

    layers: float
    logits: float

    @property
    def total(self) -> float:
        return self.layers + self.logits


class Moment(NamedTuple):
    """What a rank holds, counted by its chunks, and what it computes.

    Attributes:
        kept: micro-batches between their forward and their backward, those under way included.
        owed: micro-batches whose weight gradients are outstanding.
        idle: 1 where the decoder holds on to the input that it was given last, and nothing else
            does.
        forward, backward: the chunks that compute; None: none does.
        whole: the backward is of the weights too.
    """

    kept: tuple[int, ...]
    owed: tuple[int, ...]
    idle: tuple[int, ...]
    forward: int | None = None
    backward: int | None = None
    whole: bool = False

    @property
    def between(self) -> bool:
        """Whether it lies between two computations."""
        return self.forward is None and self.backward is None


@dataclass(frozen=True)
class RankOrder:
    """What the order of a rank's actions says of its memory.

    Attributes:
        moments: those at which it could hold most, whatever its stages cost.
        micro_batches: of each chunk in a step.
        pairs: whether a forward and a backward overlap.
    """

    moments: tuple[Moment, ...]
    micro_batches: tuple[int, ...]
    pairs: bool


def rank_orders(schedule: Schedule, placement: Placement) -> tuple[RankOrder, ...]:
    """Of every rank of a schedule, its chunks in the placement's order."""
    return tuple(
        _rank_order([action for _, action in schedule.actions(rank)], chunks)
        for rank, chunks in enumerate(placement.chunks)
    )


def fullest(order: RankOrder, chunks: Sequence[StageBytes], *, between: bool = False) -> Held:
    """The most that a rank holds at once.

    Args:
        order: of its actions.
        chunks: what a micro-batch takes in each.
        between: look between two computations only, where no layer works.
    """
    moments = (moment for moment in order.moments if moment.between or not between)
    most = max((_held(moment, chunks) for moment in moments), key=lambda held: held.total)
    batches = sum(
        number * chunk.batch for number, chunk in zip(order.micro_batches, chunks, strict=True)
    )
    return Held(most.layers + batches, most.logits)


def _rank_order(actions: Sequence[Action], chunks: Sequence[int]) -> RankOrder:
    index = {stage: place for place, stage in enumerate(chunks)}
    by_computation: dict[tuple[int | None, int | None, bool], set[Moment]] = {}
    for moment in _moments(actions, index):
        by_computation.setdefault((moment.forward, moment.backward, moment.whole), set()).add(
            moment
        )
    forwards = [part.stage for action in actions for part in action.parts if part.kind == FORWARD]
    return RankOrder(
        moments=tuple(m for moments in by_computation.values() for m in _largest(moments)),
        micro_batches=tuple(forwards.count(stage) for stage in chunks),
        pairs=any(len(action.parts) > 1 for action in actions),
    )


def _moments(actions: Sequence[Action], index: dict[int, int]) -> Iterator[Moment]:
    """Each action at its fullest, and what it leaves.

    A forward takes what its stage keeps; the gradient of the input gives back all but the operands
    of the weights' gradients; a whole backward, or those gradients, give back the rest.
    """
    kept, owed, idle = ([0] * len(index) for _ in range(3))
    given = [-1] * len(index)  # the micro-batch that a decoder was given last

    def now(*computing: int | bool | None) -> Moment:
        return Moment(tuple(kept), tuple(owed), tuple(idle), *computing)

    for action in actions:
        forward = backward = None
        whole = False
        for part in action.parts:
            chunk = index[part.stage]
            if part.kind == FORWARD:
                forward = chunk
                kept[chunk] += 1
                given[chunk], idle[chunk] = part.micro_batch, 0
            elif part.kind != WEIGHT:
                backward, whole = chunk, part.kind == BACKWARD
        if forward is not None or backward is not None:
            yield now(forward, backward, whole)
        for part in action.parts:
            _give_back(part, index[part.stage], kept, owed, idle, given)
        yield now()


def _give_back(
    part: Compute, chunk: int, kept: list[int], owed: list[int], idle: list[int], given: list[int]
) -> None:
    if part.kind == WEIGHT:
        owed[chunk] -= 1
    elif part.kind != FORWARD:
        kept[chunk] -= 1
        owed[chunk] += part.kind == INPUT
        idle[chunk] = int(given[chunk] == part.micro_batch)


def _largest(moments: set[Moment]) -> list[Moment]:
    """Those that no other one exceeds in everything."""

    def counts(moment: Moment) -> tuple[int, ...]:
        return moment.kept + moment.owed + moment.idle

    found: list[Moment] = []
    highest: list[tuple[int, ...]] = []
    # Whatever exceeds a moment has the larger sum, and comes before it.
    for moment in sorted(moments, key=lambda moment: sum(counts(moment)), reverse=True):
        mine = counts(moment)
        if not any(all(map(ge, other, mine)) for other in highest):
            found.append(moment)
            highest.append(mine)
    return found


def _held(moment: Moment, chunks: Sequence[StageBytes]) -> Held:
    """Bytes at a moment.

    A backward comes to the head first, then, its logits gone, to the layers, then to the embedding.
    """
    layers = logits = 0.0
    for kept, owed, idle, chunk in zip(moment.kept, moment.owed, moment.idle, chunks, strict=True):
        layers += kept * chunk.layers + owed * chunk.owed + idle * chunk.input
        logits += kept * chunk.logits
    if moment.forward is not None:
        layers += chunks[moment.forward].forward
        logits += chunks[moment.forward].logits_forward
    if moment.backward is None:
        return Held(layers, logits)
    chunk = chunks[moment.backward]
    phases = (
        Held(layers, logits + chunk.logits_backward),
        Held(
            layers + chunk.backward + (chunk.weights if moment.whole else 0.0),
            logits - chunk.logits,
        ),
        Held(layers + chunk.embedding - chunk.layers, logits - chunk.logits),
    )
    return max(phases, key=lambda held: held.total)
