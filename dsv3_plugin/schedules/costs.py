"""What a stage costs: time of its computations, what overlap can hide, and activation memory.

The unit is one P-th of the model, P being the number of devices, so that schedules with one, two or
four stages per device are compared doing the same work.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dsv3_plugin.errors import UserError
from dsv3_plugin.schedules.actions import FORWARD, INPUT, WEIGHT, Action, Overlap, Schedule


@dataclass(frozen=True)
class Costs:
    """Time of one P-th of the model on one micro-batch, and of a message between ranks.

    forward, input, weight: the three computations; a full backward is input + weight.
    pair: a forward and a full backward overlapped.
    latency: from the end of a computation to the arrival of its result on another rank.
    occupancy: time for which a message keeps its link busy (size / bandwidth), before the latency.
    """

    forward: float = 1.0
    input: float = 1.0
    weight: float = 1.0
    pair: float = 2.5
    latency: float = 0.0
    occupancy: float = 0.0

    def __post_init__(self) -> None:
        serial = self.forward + self.input + self.weight
        if min(self.forward, self.input, self.weight) <= 0:
            raise UserError("costs F, I and W must be above zero")
        if min(self.latency, self.occupancy) < 0:
            raise UserError("costs of communication must not be negative")
        if not max(self.forward, self.input + self.weight) <= self.pair <= serial:
            raise UserError(
                f"cost FB={self.pair:g} must lie between the longer half of the pair "
                f"({max(self.forward, self.input + self.weight):g}) and F+I+W={serial:g}"
            )

    @property
    def hidden(self) -> float:
        """Time that a pair saves over its two halves one after the other."""
        return self.forward + self.input + self.weight - self.pair


@dataclass(frozen=True)
class StageCosts:
    """Time and memory of every stage on one micro-batch; each list is by stage.

    hidden: the most that overlapping can save for a stage. A pair saves the smaller of its two
        stages' (what one waits for is hidden by what the other computes, and both must have it).
    activation: memory held from the forward to the backward, or to the weight gradient where the
        backward is split; in units of one P-th of the model on one micro-batch.
    """

    forward: tuple[float, ...]
    input: tuple[float, ...]
    weight: tuple[float, ...]
    hidden: tuple[float, ...]
    activation: tuple[float, ...]
    latency: float = 0.0
    occupancy: float = 0.0

    @property
    def num_stages(self) -> int:
        return len(self.forward)

    def repeated(self, copies: int) -> "StageCosts":
        """The same stages once more for each further copy of the model; copies count on."""
        return replace(
            self,
            forward=self.forward * copies,
            input=self.input * copies,
            weight=self.weight * copies,
            hidden=self.hidden * copies,
            activation=self.activation * copies,
        )

    def saved(self, forward_stage: int, backward_stage: int) -> float:
        """Time that a pair of these stages saves over running one after the other."""
        return min(self.hidden[forward_stage], self.hidden[backward_stage])

    def duration(self, action: Action) -> float:
        if isinstance(action, Overlap):
            halves = self.duration(action.forward) + self.duration(action.backward)
            return halves - self.saved(action.forward.stage, action.backward.stage)
        if action.kind == FORWARD:
            return self.forward[action.stage]
        if action.kind == INPUT:
            return self.input[action.stage]
        if action.kind == WEIGHT:
            return self.weight[action.stage]
        return self.input[action.stage] + self.weight[action.stage]


def sized_stages(
    costs: Costs,
    sizes: Sequence[float],
    hidden: Sequence[float] | None = None,
    activation: Sequence[float] | None = None,
) -> StageCosts:
    """Stages of the given sizes, in P-ths of the model.

    hidden, activation: the same for communication and memory, where they are not proportional to
        computation (a dense layer has no all-to-all; an output head keeps little).
    """
    hidden = sizes if hidden is None else hidden
    activation = sizes if activation is None else activation
    backward = costs.input + costs.weight
    return StageCosts(
        forward=tuple(costs.forward * size for size in sizes),
        input=tuple(costs.input * size for size in sizes),
        weight=tuple(costs.weight * size for size in sizes),
        # A pair is no shorter than the longer of its halves.
        hidden=tuple(
            min(costs.hidden * share, costs.forward * size, backward * size)
            for share, size in zip(hidden, sizes, strict=True)
        ),
        activation=tuple(activation),
        latency=costs.latency,
        occupancy=costs.occupancy,
    )


def in_units(costs: StageCosts, pp: int) -> StageCosts:
    """Costs in any unit, as shares of a P-th of all forwards, and of all activations."""
    time = sum(costs.forward) / pp
    memory = sum(costs.activation) / pp or 1.0

    def shares(values: tuple[float, ...], unit: float) -> tuple[float, ...]:
        return tuple(value / unit for value in values)

    return StageCosts(
        forward=shares(costs.forward, time),
        input=shares(costs.input, time),
        weight=shares(costs.weight, time),
        hidden=shares(costs.hidden, time),
        activation=shares(costs.activation, memory),
        latency=costs.latency / time,
        occupancy=costs.occupancy / time,
    )


def relative_stages(costs: Costs, pp: int, sizes: Sequence[float]) -> StageCosts:
    """Stages that share a model on P devices in the proportions of `sizes`."""
    total = sum(sizes)
    return sized_stages(costs, [size * pp / total for size in sizes])


def even_stages(schedule: Schedule, costs: Costs) -> StageCosts:
    """Every stage of a pipeline the same: P / (its number of stages) P-ths of the model."""
    size = {stage: schedule.pp / len(stream) for stream in schedule.streams for stage in stream}
    return sized_stages(costs, [size[stage] for stage in range(schedule.num_stages)])
