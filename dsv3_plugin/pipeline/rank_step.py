"""One rank's way through one step of a schedule: computations, and messages after each.

A backward split in two leaves its weight gradients owed until its `W`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from megatron.core import parallel_state

from dsv3_plugin.distributed.overlap import beside
from dsv3_plugin.pipeline.micro_batches import MicroBatches
from dsv3_plugin.pipeline.p2p import StageMessages
from dsv3_plugin.pipeline.split_backward import SplitBackward
from dsv3_plugin.pipeline.tasks import BackwardTask, Computation, ForwardResult, ForwardTask
from dsv3_plugin.schedules.actions import (
    BACKWARD,
    FORWARD,
    INPUT,
    WEIGHT,
    Action,
    Compute,
    Overlap,
)
from dsv3_plugin.schedules.messages import Step
from dsv3_plugin.schedules.placement import Placement


class RankStep:
    """Runs a rank's actions; every argument is of this step and this rank.

    Args:
        placement: which stages each rank's chunks are.
        chunks: the model's.
        batches: the micro-batches of each chunk.
        config: of the chunks.
        streams: of each chunk; None: this one.
        computation: carries tasks out.
        forward_step_func: the trainer's.
        micro_batches: how many.
        messages: with the ranks of other stages.
        collect_non_loss_data: the loss function gives what it likes, and no loss.
        only_forward: there will be no backward.

    Attributes:
        reports: what the loss function reported, by micro-batch, where the last stage is here.
        tokens: how many the losses count.
        peak_live: the largest number of micro-batches whose activations were held at once.
    """

    def __init__(
        self,
        *,
        placement: Placement,
        chunks: list[torch.nn.Module],
        batches: list[MicroBatches],
        config: Any,
        streams: Sequence[torch.cuda.Stream | None],
        computation: Computation,
        forward_step_func: Callable[..., Any],
        micro_batches: int,
        messages: StageMessages,
        collect_non_loss_data: bool,
        only_forward: bool,
    ) -> None:
        rank = parallel_state.get_pipeline_model_parallel_rank()
        self._placement = placement
        self._chunk_of = {stage: index for index, stage in enumerate(placement.chunks[rank])}
        self._chunks = chunks
        self._split = [SplitBackward(chunk) for chunk in chunks]
        self._batches = batches
        self._config = config
        self._streams = streams
        self._computation = computation
        self._forward_step_func = forward_step_func
        self._micro_batches = micro_batches
        self._messages = messages
        self._collect_non_loss_data = collect_non_loss_data
        self._only_forward = only_forward
        self._live: dict[tuple[int, int], ForwardResult] = {}
        self._owed: set[tuple[int, int]] = set()
        self._begun: set[int] = set()
        self.reports: dict[int, dict[str, torch.Tensor]] = {}
        self.tokens = torch.zeros([], dtype=torch.int, device=torch.cuda.current_device())
        self.peak_live = 0

    def run(self, steps: Sequence[Step], whole: Callable[[int], None] | None = None) -> None:
        """Take all steps; what was sent has left when it returns.

        Args:
            steps: of this rank.
            whole: is told each chunk whose gradients have all been computed.
        """
        left = Counter(
            self._chunk_of[part.stage] for step in steps for part in _last_halves(step.action)
        )
        for step in steps:
            if step.action is not None:
                self._compute(step.action)
            for part in _last_halves(step.action):
                index = self._chunk_of[part.stage]
                left[index] -= 1
                if whole is not None and left[index] == 0:
                    whole(index)
            for batch in step.batches:
                self._messages.post(batch)
        self._messages.wait_for_sends()

    def _compute(self, action: Action) -> None:
        computation = self._computation
        if isinstance(action, Overlap):
            forward = self._forward_task(action.forward)
            backward = self._backward_task(action.backward)
            result, gradient = computation.run_pair(forward, backward)
            self._after_forward(action.forward, result)
            self._after_backward(action.backward, gradient)
        elif action.kind == FORWARD:
            self._after_forward(action, computation.forward(self._forward_task(action)))
        elif action.kind == WEIGHT:
            index = self._chunk_of[action.stage]
            stream = self._streams[index]
            with beside(stream), torch.cuda.stream(stream):
                self._split[index].weights()
            self._owed.discard((action.stage, action.micro_batch))
        else:
            self._after_backward(action, computation.backward(self._backward_task(action)))

    def _forward_task(self, part: Compute) -> ForwardTask:
        """A forward with what it needs; waits for its input."""
        index = self._chunk_of[part.stage]
        is_first_stage = self._placement.model_stage(part.stage) == 0
        activation = None if is_first_stage else self._messages.receive(part)
        if activation is not None:
            activation.requires_grad_(not self._only_forward)
        is_first = index not in self._begun
        self._begun.add(index)
        return ForwardTask(
            function=self._forward_step_func,
            chunk=self._chunks[index],
            batch=self._batches[index].take(part.micro_batch),
            activation=activation,
            micro_batch=part.micro_batch,
            micro_batches=self._micro_batches,
            is_first=is_first,
            is_last_stage=self._is_last(part),
            config=self._config,
            collect_non_loss_data=self._collect_non_loss_data,
            stream=self._streams[index],
        )

    def _after_forward(self, part: Compute, result: ForwardResult) -> None:
        output = result.output
        if self._is_last(part):
            self.reports[part.micro_batch] = result.reports[0]
            self.tokens += result.tokens
        else:
            # The alias outlives the output, which is emptied once it has been sent.
            self._messages.send("F", part.stage, part.micro_batch, output.detach())
        if self._only_forward:
            return
        if not self._is_last(part) and self._config.deallocate_pipeline_outputs:
            output.data = torch.empty(1, device=output.device, dtype=output.dtype)
        self._live[part.stage, part.micro_batch] = result
        self.peak_live = max(self.peak_live, len(self._live) + len(self._owed))

    def _backward_task(self, part: Compute) -> BackwardTask:
        """A backward with what it needs; waits for its gradient."""
        assert part.kind in (BACKWARD, INPUT)
        index = self._chunk_of[part.stage]
        return BackwardTask(
            forward=self._live[part.stage, part.micro_batch],
            gradient=None if self._is_last(part) else self._messages.receive(part),
            weights_owed=part.kind == INPUT,
            split=self._split[index],
            config=self._config,
            stream=self._streams[index],
        )

    def _after_backward(self, part: Compute, input_gradient: torch.Tensor | None) -> None:
        del self._live[part.stage, part.micro_batch]
        if part.kind == INPUT:
            self._owed.add((part.stage, part.micro_batch))
        if input_gradient is not None:
            self._messages.send("B", part.stage, part.micro_batch, input_gradient)

    def _is_last(self, part: Compute) -> bool:
        return self._placement.model_stage(part.stage) == self._placement.depth - 1


def _last_halves(action: Action | None) -> list[Compute]:
    """What of an action leaves no gradient of its micro-batch owed: at most one."""
    if isinstance(action, Overlap):
        action = action.backward
    return [action] if isinstance(action, Compute) and action.kind in (BACKWARD, WEIGHT) else []
