"""A rank's step as it posts and computes it, on tensors that have shapes alone.

The run's own executor takes the step, on process groups that write down what is posted
(`recorded_group`) and with computations that write down what they were given.
"""

import copy
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from megatron.core import parallel_state
from torch._subclasses.fake_tensor import FakeTensorMode

from dsv3_plugin.model.linear import WeightGradients
from dsv3_plugin.pipeline.executor import Executor
from dsv3_plugin.pipeline.micro_batches import MicroBatches
from dsv3_plugin.pipeline.tasks import BackwardTask, ForwardResult, ForwardTask
from dsv3_plugin.rehearsal.recorded_group import Posted, Recording, recorded_world
from dsv3_plugin.schedules.actions import (
    BACKWARD,
    FORWARD,
    INPUT,
    WEIGHT,
    Action,
    Compute,
    Overlap,
    Schedule,
)
from dsv3_plugin.schedules.nccl import Batch, Work
from dsv3_plugin.schedules.placement import placement_of


@dataclass
class RankRecord:
    """What a rank posted and computed.

    Attributes:
        start: before its first step, in order.
        program: in its step.
        made: tensor that was sent → what made it.
        used: tensor that was received → what was computed from it.
        failed: why it did not come to its end; None if it did.
    """

    start: list[Work[Posted] | Batch[Posted]] = field(default_factory=list)
    program: list[Work[Posted] | Batch[Posted]] = field(default_factory=list)
    made: dict[int, Compute] = field(default_factory=dict)
    used: dict[int, Compute] = field(default_factory=dict)
    failed: str | None = None


def recorded_steps(
    schedule: Schedule, shape: tuple[int, int, int], dtype: torch.dtype
) -> list[RankRecord]:
    """The steps of all ranks of a pipeline.

    The process has to be a CPU host, and of no world.

    Args:
        schedule: of the step.
        shape, dtype: of the messages between stages, `[s, b, h]`.
    """
    executor = Executor(lambda _: schedule)
    executor.plan(schedule.num_micro_batches, only_forward=False)  # once, and not by every rank
    return [
        _record(copy.copy(executor), schedule, rank, shape, dtype) for rank in range(schedule.pp)
    ]


def _record(
    executor: Executor,
    schedule: Schedule,
    rank: int,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
) -> RankRecord:
    """Let one rank take its step."""
    with recorded_world(rank, schedule.pp) as recording:
        parallel_state.initialize_model_parallel(
            pipeline_model_parallel_size=schedule.pp, create_gloo_process_groups=False
        )
        try:
            with FakeTensorMode(allow_non_fake_inputs=True):
                return _take_step(executor, schedule, recording, shape, dtype)
        finally:
            parallel_state.destroy_model_parallel()


def _take_step(
    executor: Executor,
    schedule: Schedule,
    recording: Recording,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
) -> RankRecord:
    record = RankRecord(start=recording.program)
    config = SimpleNamespace(
        pipeline_dtype=dtype, hidden_size=shape[2], deallocate_pipeline_outputs=False
    )
    stages = placement_of(schedule).chunks[recording.rank]
    micro_batches = schedule.num_micro_batches
    try:
        rank_step, steps = executor.rank_step(
            _Shapes(record, recording, shape, dtype),
            [_Chunk(stage, config, record) for stage in stages],
            [MicroBatches(None, micro_batches) for _ in stages],
            forward_step_func=_nothing,
            micro_batches=micro_batches,
            shape=shape,
        )
        recording.program = record.program
        rank_step.run(steps)
    except LookupError as error:  # of a message that nobody posted, or a group that nobody made
        record.failed = _what_is_missing(error)
    return record


def _what_is_missing(error: LookupError) -> str:
    """What `StageMessages` or `Neighbours` looked for and did not find."""
    match error.args[0]:
        case str(direction), int(stage), int(micro_batch):
            return f"there is no message for {stage}{direction}{micro_batch} where it is wanted"
        case peer:
            return f"it has no process group with {peer}"


def _nothing(*args: Any) -> None:
    """A trainer's forward step, which computations on shapes alone do not call."""


class _Chunk(torch.nn.Module):
    """A chunk without layers.

    Attributes:
        stage: of the schedule.
        config: as much of upstream's as messages need.
        weight_gradients: writes down when owed weight gradients are computed.
    """

    def __init__(self, stage: int, config: Any, record: RankRecord) -> None:
        super().__init__()
        self.stage = stage
        self.config = config
        self.weight_gradients = _Owed(stage, record)


class _Owed(WeightGradients):
    def __init__(self, stage: int, record: RankRecord) -> None:
        super().__init__()
        self._stage, self._record = stage, record

    def pay_oldest(self) -> None:
        self._record.program.append(Work(Compute(self._stage, WEIGHT, 0), ()))


class _Shapes:
    """A `Computation` of tensors that have shapes alone; writes down what became of which."""

    def __init__(
        self,
        record: RankRecord,
        recording: Recording,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
    ) -> None:
        self._record, self._recording = record, recording
        self._shape, self._dtype = shape, dtype

    def forward(self, task: ForwardTask) -> ForwardResult:
        part, result_of_it = self._forward(task)
        self._computed(part)
        return result_of_it

    def backward(self, task: BackwardTask) -> torch.Tensor | None:
        part, gradient = self._backward(task)
        self._computed(part)
        return gradient

    def run_pair(
        self, forward: ForwardTask, backward: BackwardTask
    ) -> tuple[ForwardResult, torch.Tensor | None]:
        (first, result_of_it), (second, gradient) = self._forward(forward), self._backward(backward)
        self._computed(Overlap(first, second))
        return result_of_it, gradient

    def _forward(self, task: ForwardTask) -> tuple[Compute, ForwardResult]:
        part = Compute(task.chunk.stage, FORWARD, task.micro_batch)
        output = self._from(task.activation, part)
        tokens = torch.zeros([], dtype=torch.int)
        return part, ForwardResult(task.activation, output, tokens, [{}], kept=part)

    def _backward(self, task: BackwardTask) -> tuple[Compute, torch.Tensor | None]:
        forward = task.forward.kept
        part = Compute(forward.stage, INPUT if task.weights_owed else BACKWARD, forward.micro_batch)
        gradient = self._from(task.gradient, part)
        return part, None if task.forward.activation is None else gradient

    def _from(self, tensor: torch.Tensor | None, part: Compute) -> torch.Tensor:
        """What `part` makes of a tensor."""
        if tensor is not None:
            self._record.used[self._recording.number(tensor)] = part
        made = torch.empty(self._shape, dtype=self._dtype)
        self._record.made[self._recording.number(made)] = part
        return made

    def _computed(self, action: Action) -> None:
        self._record.program.append(Work(action, ()))
