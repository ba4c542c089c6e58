"""What a rank computes in a step: tasks, and who carries them out.

A task is the forward or the backward of one micro-batch through one chunk, with all that it needs;
what it leaves behind is a result. A `Computation` carries tasks out, one by one or two as a pair.
There are two: `PlainComputation` here, and `chunk_plan.PlannedComputation` for GPUs. What both
compute is upstream's: `forward_step` and `backward_step` of
megatron.core.pipeline_parallel.schedules.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel.schedules import backward_step, forward_step

from dsv3_plugin.distributed.overlap import Overlap, beside
from dsv3_plugin.pipeline.split_backward import SplitBackward


@dataclass(frozen=True)
class ForwardTask:
    """A micro-batch's forward through a chunk.

    Attributes:
        function: the trainer's, called with an iterator and the chunk; gives the output and the
            function that makes a loss of it.
        chunk: of this rank.
        batch: an iterator over just this micro-batch.
        activation: the chunk's input `[s, b, h]`; None on the first stage.
        micro_batch, micro_batches: its number, and how many there are in the step.
        is_first: the first that this chunk sees in the step.
        is_last_stage: a loss is made of the output.
        config: of the chunk.
        collect_non_loss_data: the loss function gives what it likes, and no loss.
        stream: of the chunk; None: the caller's (see `chunk_streams`).
    """

    function: Callable[..., Any]
    chunk: torch.nn.Module
    batch: Iterator[Any]
    activation: torch.Tensor | None
    micro_batch: int
    micro_batches: int
    is_first: bool
    is_last_stage: bool
    config: Any
    collect_non_loss_data: bool = False
    stream: torch.cuda.Stream | None = None


@dataclass(frozen=True)
class ForwardResult:
    """What a forward leaves behind; it lives until the backward has run.

    Attributes:
        activation: the chunk's input.
        output: the chunk's output `[s, b, h]`, on the last stage the loss.
        tokens: how many the loss counts.
        reports: what the loss function reports, on the last stage alone.
        kept: whatever else the computation that ran it needs for the backward.
    """

    activation: torch.Tensor | None
    output: torch.Tensor
    tokens: torch.Tensor
    reports: list[Any]
    kept: Any = None


@dataclass(frozen=True)
class BackwardTask:
    """The backward of a micro-batch whose forward has run.

    Attributes:
        forward: what that left behind.
        gradient: of the output; None on the last stage, whose output is the loss.
        weights_owed: compute the gradient of the input alone, and leave those of the weights owed.
        split: the chunk's weight gradients.
        config: of the chunk.
        stream: of the chunk, as its forward had it.
    """

    forward: ForwardResult
    gradient: torch.Tensor | None
    weights_owed: bool
    split: SplitBackward
    config: Any
    stream: torch.cuda.Stream | None = None


class Computation(Protocol):
    """Carries out tasks. A backward gives the gradient of the chunk's input, if it has one."""

    def forward(self, task: ForwardTask) -> ForwardResult: ...

    def backward(self, task: BackwardTask) -> torch.Tensor | None: ...

    def run_pair(
        self, forward: ForwardTask, backward: BackwardTask
    ) -> tuple[ForwardResult, torch.Tensor | None]: ...


class PlainComputation:
    """Forwards and backwards as upstream computes them; those of a pair overlap on two threads."""

    def __init__(self) -> None:
        self._overlap = Overlap()

    def forward(self, task: ForwardTask) -> ForwardResult:
        with beside(task.stream):
            return _forward(task)

    def backward(self, task: BackwardTask) -> torch.Tensor | None:
        with beside(task.stream):
            return _backward(task)

    def run_pair(
        self, forward: ForwardTask, backward: BackwardTask
    ) -> tuple[ForwardResult, torch.Tensor | None]:
        with beside(forward.stream, backward.stream):
            return self._overlap.run_pair(partial(_forward, forward), partial(_backward, backward))


def _forward(task: ForwardTask) -> ForwardResult:
    with torch.cuda.stream(task.stream):
        return run_forward(task, task.chunk)


def _backward(task: BackwardTask) -> torch.Tensor | None:
    with torch.cuda.stream(task.stream), task.split.keeping_weights_owed(task.weights_owed):
        return backward_step(
            task.forward.activation, task.forward.output, task.gradient, task.config
        )


def run_forward(task: ForwardTask, chunk: Any) -> ForwardResult:
    """Upstream's `forward_step` for a task, on its chunk or on what stands for it."""
    reports: list[Any] = []
    output, tokens = forward_step(
        task.function,
        task.batch,
        chunk,
        task.micro_batches,
        task.activation,
        reports,
        task.config,
        cp_group_size=parallel_state.get_context_parallel_world_size(),
        collect_non_loss_data=task.collect_non_loss_data,
        is_first_microbatch=task.is_first,
        current_microbatch=task.micro_batch,
        is_last_stage=task.is_last_stage,
    )
    return ForwardResult(task.activation, output, tokens, reports)
