"""How much a rank holds at once under a schedule; it depends on the order alone."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dsv3_plugin.planner.memory.activations import StageBytes
from dsv3_plugin.schedules.actions import (
    BACKWARD,
    FORWARD,
    INPUT,
    WEIGHT,
    Action,
    Schedule,
)


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
    """An action of a schedule.

    Attributes:
        during: what the rank holds at the action's fullest.
        after: what it leaves.
    """

    action: Action
    during: Held
    after: Held


def walk(schedule: Schedule, rank: int, stages: Sequence[StageBytes]) -> Iterator[Moment]:
    """A rank's actions in order, with what it holds.

    A forward takes what its stage keeps; the gradient of the input gives back all but the operands
    of the weights' gradients; a whole backward, or those gradients, give back the rest. Upstream's
    decoder holds on to the input that it was given last. The two halves of an overlapped pair work
    at the same time.

    Args:
        schedule: all of it.
        rank: of the pipeline.
        stages: by stage of the schedule.
    """
    layers = logits = 0.0
    given: dict[int, int] = {}  # stage → the micro-batch that its decoder was given last
    idle: set[int] = set()  # stages whose decoder holds on to an input that nothing else keeps
    for _, action in schedule.actions(rank):
        for part in action.parts:
            if part.kind == FORWARD:
                stage = stages[part.stage]
                if part.stage in idle:
                    idle.remove(part.stage)
                    layers -= stage.input
                given[part.stage] = part.micro_batch
                layers += stage.layers + stage.batch
                logits += stage.logits
        during = _fullest(Held(layers, logits), action, stages)
        for part in action.parts:
            stage = stages[part.stage]
            if part.kind == WEIGHT:
                layers -= stage.owed
            elif part.kind != FORWARD:
                layers -= stage.layers - (stage.owed if part.kind == INPUT else 0.0)
                logits -= stage.logits
                if given[part.stage] == part.micro_batch:
                    idle.add(part.stage)
                    layers += stage.input
        yield Moment(action, during, Held(layers, logits))


def _fullest(held: Held, action: Action, stages: Sequence[StageBytes]) -> Held:
    """What is held at an action's fullest, `held` being all that it finds and keeps.

    A backward comes to the head first, then, its logits gone, to the layers, then to the embedding.
    """
    layers, logits = held
    phases = [Held(0.0, 0.0)]
    for part in action.parts:
        stage = stages[part.stage]
        if part.kind == FORWARD:
            layers += stage.forward
            logits += stage.logits_forward
        elif part.kind != WEIGHT:
            whole = stage.weights if part.kind == BACKWARD else 0.0
            phases = [
                Held(0.0, stage.logits_backward),
                Held(stage.backward + whole, -stage.logits),
                Held(stage.embedding - stage.layers, -stage.logits),
            ]
    worst = max(phases, key=lambda phase: phase.total)
    return Held(layers + worst.layers, logits + worst.logits)
