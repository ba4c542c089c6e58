"""Running a schedule: any that `validate` passes, on Megatron model chunks.

`Executor` stands where upstream's `get_forward_backward_func` gives one of its own schedules, takes
the same arguments and leaves the same results. A step of a schedule is a computation and then one
batch of messages (`messages.py`); a forward and a backward of an overlapped pair take turns
(`turns.py`) or, on a GPU, run by upstream's schedule plan (`chunk_plan.py`); a backward split in
two leaves its weight gradients owed until its `W`.

What a computation does is upstream's: `forward_step` and `backward_step` of
megatron.core.pipeline_parallel.schedules.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel.schedules import backward_step, forward_step
from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper
from megatron.core.utils import get_attr_wrapped_model, get_model_config

from dsv3_plugin.distributed import overlap as turns
from dsv3_plugin.distributed.failures import naming_lost, set_timeout
from dsv3_plugin.distributed.missing_ranks import answer_searches
from dsv3_plugin.pipeline.chunk_plan import PlannedSteps, plan_serves
from dsv3_plugin.pipeline.p2p import PostOffice
from dsv3_plugin.pipeline.replicas import mirror_of
from dsv3_plugin.pipeline.split_backward import SplitBackward
from dsv3_plugin.pipeline.step_numbers import Form, agree
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
from dsv3_plugin.schedules.forward_only import forward_only
from dsv3_plugin.schedules.messages import Step, message_steps
from dsv3_plugin.schedules.placement import Placement, placement_of

Losses = list[dict[str, torch.Tensor]]


class Executor:
    """Runs the schedules of a run, in the form upstream's trainer calls.

    Args:
        schedule_for: the schedule for a number of micro-batches; all of them place stages alike.
        timeout_s: how long a step waits for another rank of its pipeline; None: as long as the
            process groups were made for.
    """

    def __init__(
        self, schedule_for: Callable[[int], Schedule], timeout_s: float | None = None
    ) -> None:
        self._schedule_for = schedule_for
        self._timeout_s = timeout_s
        self._began = False
        self._forms: dict[bool, Form] = {}
        self._plans: dict[tuple[int, bool], tuple[Placement, list[list[Step]]]] = {}
        self.peak_live = 0
        """Largest number of chunk micro-batches whose activations this rank held at once."""

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside, upstream's trainer runs its steps with this executor and not with its own."""
        token = _in_use.set(self)
        try:
            yield
        finally:
            _in_use.reset(token)

    def plan(self, micro_batches: int, only_forward: bool) -> tuple[Placement, list[list[Step]]]:
        """Placement and steps of every rank, made once for each number of micro-batches."""
        key = (micro_batches, only_forward)
        if key not in self._plans:
            if only_forward:
                # Any number of micro-batches will do, so the placement is taken from whichever
                # training schedule there is.
                known = next(iter(self._plans.values()), None)
                placement = known[0] if known else placement_of(self._schedule_for(micro_batches))
                schedule = forward_only(placement, micro_batches)
            else:
                schedule = self._schedule_for(micro_batches)
                placement = placement_of(schedule)
            self._plans[key] = (placement, message_steps(schedule))
        return self._plans[key]

    def __call__(
        self,
        *,
        forward_step_func: Callable[..., Any],
        data_iterator: Any,
        model: Any,
        num_microbatches: int,
        seq_length: int,
        micro_batch_size: int,
        forward_only: bool = False,
        collect_non_loss_data: bool = False,
        force_all_reduce: bool | None = False,
        **unused: Any,
    ) -> Losses:
        """One step: forward and backward of `num_microbatches`, gradients finished.

        Returns:
            What the loss function reports of every micro-batch, on all ranks of the pipeline.
        """
        chunks = model if isinstance(model, list) else [model]
        iterators = data_iterator if isinstance(data_iterator, list) else [data_iterator]
        config = get_model_config(chunks[0])
        placement, steps = self.plan(num_microbatches, forward_only)
        group = parallel_state.get_pipeline_model_parallel_group()
        pipeline = torch.distributed.get_process_group_ranks(group)
        if not self._began:
            self._begin(placement)
        batches = [_Batches(iterator, num_microbatches) for iterator in iterators]
        timers, config.timers = config.timers, None  # they do not expect two threads
        rank_run = _RankRun(
            placement=placement,
            chunks=chunks,
            batches=batches,
            config=config,
            steps=_steps_for(config, chunks[0], forward_only),
            forward_step_func=forward_step_func,
            micro_batches=num_microbatches,
            post=PostOffice(group, (seq_length, micro_batch_size, config.hidden_size), config),
            collect_non_loss_data=collect_non_loss_data,
            only_forward=forward_only,
        )
        try:
            with torch.set_grad_enabled(not forward_only):
                for step in steps[group.rank()]:
                    rank_run.take(step)
            rank_run.post.finish()
            for chunk, chunk_batches in zip(chunks, batches, strict=True):
                if _reads_batches(chunk):
                    chunk_batches.pass_over_rest()
        finally:
            config.timers = timers
        if collect_non_loss_data:  # whatever a function of the user's makes
            with naming_lost("the sharing of what was collected", pipeline):
                return _share_objects(rank_run.losses, group)
        totals = {} if forward_only else {_TOKENS: rank_run.tokens, **_mtp_numbers()}
        with naming_lost("the sharing of the losses", pipeline):
            if forward_only not in self._forms:
                self._forms[forward_only] = agree(rank_run.losses, totals, group)
            form = self._forms[forward_only]
            vector = form.pack(
                num_microbatches, rank_run.losses, totals, torch.cuda.current_device()
            )
            torch.distributed.all_reduce(vector, group=group)
        losses, totals = form.unpack(num_microbatches, vector)
        if not forward_only:
            self.peak_live = rank_run.peak_live
            tokens = totals.pop(_TOKENS)
            _keep_mtp_numbers(totals)
            _finish_gradients(config, chunks, placement, tokens, force_all_reduce)
        return losses

    def _begin(self, placement: Placement) -> None:
        """Once, before the first step: how long to wait for others, and who is there."""
        answer_searches()
        if self._timeout_s is not None:
            mirror = [mirror_of(placement).group] if placement.copies == 2 else []
            set_timeout(self._timeout_s, [*_groups_of_a_step(), *mirror])
        self._began = True


def _groups_of_a_step() -> list[Any]:
    """The groups over which upstream's part of a step reaches other ranks of a pipeline.

    Messages between stages, and the gradient's norm and whether it is finite.
    """
    return [
        parallel_state.get_pipeline_model_parallel_group(),
        parallel_state.get_model_parallel_group(),
        parallel_state.get_expert_tensor_model_pipeline_parallel_group(),
    ]


class _Batches:
    """A chunk's micro-batches by number, whatever order a schedule asks for them in.

    The iterator gives all micro-batches of a step in order; a chunk of DualPipe computes half.
    """

    def __init__(self, iterator: Iterator[Any] | None, micro_batches: int) -> None:
        self._iterator = iterator
        self._count = micro_batches
        self._waiting: dict[int, Any] = {}
        self._read = 0

    def take(self, micro_batch: int) -> Iterator[Any]:
        """An iterator over just this micro-batch; one that is not asked reads nothing."""
        while self._read <= micro_batch:
            self._waiting[self._read] = next(self._iterator)
            self._read += 1
        yield self._waiting.pop(micro_batch)

    def pass_over_rest(self) -> None:
        """Leave the iterator where the next step begins."""
        while self._read < self._count:
            next(self._iterator)
            self._read += 1


def _reads_batches(chunk: torch.nn.Module) -> bool:
    return any(
        get_attr_wrapped_model(chunk, part)
        for part in ("pre_process", "post_process", "mtp_process")
    )


class StepsInTurn:
    """Forward and backward of chunks as upstream computes them; those of a pair take turns."""

    forward_step = staticmethod(forward_step)
    run_pair = staticmethod(turns.run_pair)

    @staticmethod
    def backward_step(
        activation: torch.Tensor | None,
        output: torch.Tensor,
        gradient: torch.Tensor | None,
        config: Any,
        split: SplitBackward,
        weights_owed: bool,
    ) -> torch.Tensor | None:
        """Upstream's `backward_step`, which may leave the weight gradients owed."""
        with split.keeping_weights_owed(weights_owed):
            return backward_step(activation, output, gradient, config)


def _steps_for(
    config: Any, chunk: torch.nn.Module, only_forward: bool
) -> StepsInTurn | PlannedSteps:
    device = next(chunk.parameters()).device
    if only_forward or not plan_serves(config, device):
        return StepsInTurn()
    return PlannedSteps(config)


class _RankRun:
    """One rank's way through one step."""

    def __init__(
        self,
        *,
        placement: Placement,
        chunks: list[torch.nn.Module],
        batches: list[_Batches],
        config: Any,
        steps: StepsInTurn | PlannedSteps,
        forward_step_func: Callable[..., Any],
        micro_batches: int,
        post: PostOffice,
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
        self._steps = steps
        self._forward_step_func = forward_step_func
        self._micro_batches = micro_batches
        self._collect_non_loss_data = collect_non_loss_data
        self._only_forward = only_forward
        self._live: dict[tuple[int, int], tuple[torch.Tensor | None, torch.Tensor]] = {}
        self._owed: set[tuple[int, int]] = set()
        self._begun: set[int] = set()
        self.post = post
        self.losses: dict[int, dict[str, torch.Tensor]] = {}
        self.tokens = torch.zeros([], dtype=torch.int, device=torch.cuda.current_device())
        self.peak_live = 0

    def take(self, step: Step) -> None:
        """Compute, and post the messages that follow."""
        if step.action is not None:
            self._compute(step.action)
        self.post.exchange(step.messages)

    def _compute(self, action: Action) -> None:
        if isinstance(action, Overlap):
            forward = self._prepare_forward(action.forward)
            backward = self._prepare_backward(action.backward)
            self._steps.run_pair(forward, backward)
        elif action.kind == FORWARD:
            self._prepare_forward(action)()
        elif action.kind == WEIGHT:
            self._split[self._chunk_of[action.stage]].weights()
            self._owed.discard((action.stage, action.micro_batch))
        else:
            self._prepare_backward(action)()

    def _prepare_forward(self, part: Compute) -> Callable[[], None]:
        """Wait for what a forward needs, and give back the forward itself."""
        stage, micro_batch = part.stage, part.micro_batch
        index = self._chunk_of[stage]
        model_stage = self._placement.model_stage(stage)
        last = model_stage == self._placement.depth - 1
        activation = None if model_stage == 0 else self.post.receive(part)
        if activation is not None:
            activation.requires_grad_(not self._only_forward)

        def forward() -> None:
            reports: list[Any] = []
            output, tokens = self._steps.forward_step(
                self._forward_step_func,
                self._batches[index].take(micro_batch),
                self._chunks[index],
                self._micro_batches,
                activation,
                reports,
                self._config,
                cp_group_size=parallel_state.get_context_parallel_world_size(),
                collect_non_loss_data=self._collect_non_loss_data,
                is_first_microbatch=index not in self._begun,
                current_microbatch=micro_batch,
                is_last_stage=last,
            )
            self._begun.add(index)
            if last:
                self.losses[micro_batch] = reports[0]
                self.tokens += tokens
            else:
                # The alias outlives the output, which is emptied once it has been handed on.
                self.post.hand_on("F", stage, micro_batch, output.detach())
            if self._only_forward:
                return
            if not last and self._config.deallocate_pipeline_outputs:
                output.data = torch.empty(1, device=output.device, dtype=output.dtype)
            self._live[stage, micro_batch] = (activation, output)
            self.peak_live = max(self.peak_live, len(self._live) + len(self._owed))

        return forward

    def _prepare_backward(self, part: Compute) -> Callable[[], None]:
        """Wait for what a backward needs, and give back the backward itself."""
        stage, micro_batch = part.stage, part.micro_batch
        split = self._split[self._chunk_of[stage]]
        last = self._placement.model_stage(stage) == self._placement.depth - 1
        gradient = None if last else self.post.receive(part)

        def backward() -> None:
            activation, output = self._live[stage, micro_batch]
            input_gradient = self._steps.backward_step(
                activation, output, gradient, self._config, split, part.kind == INPUT
            )
            del self._live[stage, micro_batch]
            if part.kind == INPUT:
                self._owed.add((stage, micro_batch))
            if input_gradient is not None:
                self.post.hand_on("B", stage, micro_batch, input_gradient)

        assert part.kind in (BACKWARD, INPUT)
        return backward


def _finish_gradients(
    config: Any,
    chunks: list[torch.nn.Module],
    placement: Placement,
    tokens: torch.Tensor,
    force_all_reduce: bool | None,
) -> None:
    """What upstream does with gradients after the last backward, and what precedes it here."""
    if placement.copies == 2:
        mirror_of(placement).add_gradients(chunks)
    if config.finalize_model_grads_func is None:
        return
    with naming_lost("the sum of the gradients", range(torch.distributed.get_world_size())):
        config.finalize_model_grads_func(
            chunks,
            tokens if config.calculate_per_token_loss else None,
            force_all_reduce=force_all_reduce,
        )


_TOKENS = "tokens"
"""The token count's name among a step's totals, beside MTP's."""


def _mtp_numbers() -> dict[str, torch.Tensor]:
    """The MTP losses that arose on this rank. Upstream logs them on the last."""
    return {
        name: value
        for name, value in MTPLossLoggingHelper.tracker.items()
        if isinstance(value, torch.Tensor) and "cumulative" not in name
    }


def _keep_mtp_numbers(numbers: dict[str, torch.Tensor]) -> None:
    """Put the pipeline's MTP losses where upstream looks for them, on every rank."""
    if not numbers:
        return
    tracker = MTPLossLoggingHelper.tracker
    tracker.update(numbers)
    tracker.setdefault("reduce_group", None)
    tracker["avg_group"] = parallel_state.get_data_parallel_group(with_context_parallel=True)


def _share_objects(mine: dict[int, Any], group: Any) -> list[Any]:
    """What each micro-batch gave, in order, on every rank."""
    everyone: list[Any] = [None] * group.size()
    torch.distributed.all_gather_object(everyone, mine, group=group)
    together = {number: report for reports in everyone for number, report in reports.items()}
    return [together[number] for number in sorted(together)]


_in_use: ContextVar[Executor | None] = ContextVar("executor", default=None)


def choose_executor(get_forward_backward_func: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps upstream's `get_forward_backward_func`: ours where one is in use."""

    def get(*args: Any, **kwargs: Any) -> Any:
        return _in_use.get() or get_forward_backward_func(*args, **kwargs)

    return get
