"""Running a schedule: any that `validate` passes, on Megatron model chunks.

`Executor` stands where upstream's `get_forward_backward_func` gives one of its own schedules, takes
the same arguments and leaves the same results. In a step every rank runs its actions
(`rank_step.py`), the ranks of the pipeline share what came of them (`step_numbers.py`), and the
gradients are finished as upstream finishes them.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.utils import get_model_config, unwrap_model

from dsv3_plugin.distributed.failures import naming_lost
from dsv3_plugin.distributed.missing_ranks import answer_searches
from dsv3_plugin.pipeline.chunk_plan import PlannedComputation, plan_serves
from dsv3_plugin.pipeline.chunk_streams import ChunkStreams
from dsv3_plugin.pipeline.micro_batches import MicroBatches, reads_batches
from dsv3_plugin.pipeline.neighbours import Neighbours
from dsv3_plugin.pipeline.p2p import StageMessages
from dsv3_plugin.pipeline.rank_step import RankStep
from dsv3_plugin.pipeline.reductions import reductions
from dsv3_plugin.pipeline.replicas import Replicas
from dsv3_plugin.pipeline.step_numbers import Form, agree, keep_mtp_losses, mtp_losses
from dsv3_plugin.pipeline.tasks import Computation, PlainComputation
from dsv3_plugin.schedules.actions import Schedule
from dsv3_plugin.schedules.forward_only import forward_only
from dsv3_plugin.schedules.messages import Step, message_steps
from dsv3_plugin.schedules.placement import Placement, placement_of

Losses = list[dict[str, torch.Tensor]]

_TOKENS = "tokens"
"""The token count's name among a step's totals, beside MTP's."""


class Executor:
    """Runs the schedules of a run, in the form upstream's trainer calls.

    It lives as long as the process groups and the chunks it runs.

    Args:
        schedule_for: the schedule for a number of micro-batches; all of them place stages alike.
    """

    def __init__(self, schedule_for: Callable[[int], Schedule]) -> None:
        self._schedule_for = schedule_for
        self._began = False
        self._neighbours: Neighbours | None = None
        self._streams = ChunkStreams()
        self._plain = PlainComputation()
        self._training: Computation = self._plain
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
        group = parallel_state.get_pipeline_model_parallel_group()
        context = parallel_state.get_context_parallel_world_size()
        if not self._began:
            self._begin(chunks, config)
        batches = [MicroBatches(iterator, num_microbatches) for iterator in iterators]
        rank_step, steps = self.rank_step(
            self._plain if forward_only else self._training,
            chunks,
            batches,
            forward_step_func=forward_step_func,
            micro_batches=num_microbatches,
            shape=(seq_length // context, micro_batch_size, config.hidden_size),
            only_forward=forward_only,
            collect_non_loss_data=collect_non_loss_data,
        )
        # Without upstream's function that finishes them, gradients stay each rank's own.
        finishes = config.finalize_model_grads_func is not None and not forward_only
        reduced = reductions(chunks, force_all_reduce) if finishes else None
        with _without_timers(config), torch.set_grad_enabled(not forward_only):
            rank_step.run(steps, reduced and reduced.begin)
            for chunk, chunk_batches in zip(chunks, batches, strict=True):
                if reads_batches(chunk):
                    chunk_batches.pass_over_rest()
        pipeline = torch.distributed.get_process_group_ranks(group)
        if collect_non_loss_data:  # whatever a function of the user's makes
            with naming_lost("the sharing of what was collected", pipeline):
                return _share_objects(rank_step.reports, group)
        totals = {} if forward_only else {_TOKENS: rank_step.tokens, **mtp_losses()}
        with naming_lost("the sharing of the losses", pipeline):
            if forward_only not in self._forms:
                self._forms[forward_only] = agree(rank_step.reports, totals, group)
            form = self._forms[forward_only]
            vector = form.pack(
                num_microbatches, rank_step.reports, totals, torch.cuda.current_device()
            )
            torch.distributed.all_reduce(vector, group=group)
        losses, totals = form.unpack(num_microbatches, vector)
        if not forward_only:
            self.peak_live = rank_step.peak_live
            tokens = totals.pop(_TOKENS)
            keep_mtp_losses(totals)
            with reduced.waited_for() if reduced else contextlib.nullcontext():
                _finish_gradients(config, chunks, tokens, force_all_reduce)
        return losses

    def rank_step(
        self,
        computation: Computation,
        chunks: list[torch.nn.Module],
        batches: list[MicroBatches],
        *,
        forward_step_func: Callable[..., Any],
        micro_batches: int,
        shape: tuple[int, int, int],
        only_forward: bool = False,
        collect_non_loss_data: bool = False,
    ) -> tuple[RankStep, list[Step]]:
        """What this rank is to do in a step, and who does it.

        Args:
            computation: carries tasks out.
            chunks: of the model.
            batches: the micro-batches of each chunk.
            forward_step_func: the trainer's.
            micro_batches: how many.
            shape: of the messages between stages, `[s, b, h]`.
            only_forward: there will be no backward.
            collect_non_loss_data: the loss function gives what it likes, and no loss.
        """
        placement, steps = self.plan(micro_batches, only_forward)
        group = parallel_state.get_pipeline_model_parallel_group()
        if self._neighbours is None:
            self._neighbours = Neighbours(placement, group)
        config, mine = get_model_config(chunks[0]), steps[group.rank()]
        rank_step = RankStep(
            placement=placement,
            chunks=chunks,
            batches=batches,
            config=config,
            streams=self._streams_for(mine, len(chunks)),
            computation=computation,
            forward_step_func=forward_step_func,
            micro_batches=micro_batches,
            messages=StageMessages(self._neighbours, shape, config),
            collect_non_loss_data=collect_non_loss_data,
            only_forward=only_forward,
        )
        return rank_step, mine

    def _streams_for(self, steps: list[Step], chunks: int) -> Sequence[torch.cuda.Stream | None]:
        """By chunk; upstream's plan has streams of its own."""
        if self._training is not self._plain:
            return [None] * chunks
        return self._streams.for_steps(steps, chunks)

    def _begin(self, chunks: list[torch.nn.Module], config: Any) -> None:
        """Once, before the first step."""
        packs = _joined.get()
        if not packs and plan_serves(config, next(chunks[0].parameters()).device):
            self._training = PlannedComputation(config)
        answer_searches()
        self._began = True


_in_use: ContextVar[Executor | None] = ContextVar("executor", default=None)


def choose_executor(get_forward_backward_func: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps upstream's `get_forward_backward_func`: ours where one is in use."""

    @functools.wraps(get_forward_backward_func)
    def get(*args: Any, **kwargs: Any) -> Any:
        function = _in_use.get() or get_forward_backward_func(*args, **kwargs)
        return _in_one_row(function) if _joined.get() else function

    return get


_joined: ContextVar[bool] = ContextVar("joined", default=False)


@contextlib.contextmanager
def rows_joined() -> Iterator[None]:
    """Inside, the sequences of a micro-batch are one row, one after the other: `[b · s, 1, h]`.

    Packs are so, and what pipeline stages send each other has that shape.
    """
    token = _joined.set(True)
    try:
        yield
    finally:
        _joined.reset(token)


def _in_one_row(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any, seq_length: int, micro_batch_size: int, **kwargs: Any) -> Any:
        row = {"seq_length": seq_length * micro_batch_size, "micro_batch_size": 1}
        return function(*args, **row, **kwargs)

    return run


@contextlib.contextmanager
def _without_timers(config: Any) -> Iterator[None]:
    """Upstream's timers do not expect two threads."""
    timers, config.timers = config.timers, None
    try:
        yield
    finally:
        config.timers = timers


def _replicas(chunks: list[torch.nn.Module]) -> Replicas | None:
    """DualPipe's two replicas, where the chunks are part of such."""
    return getattr(unwrap_model(chunks[0]), "replicas", None)


def _finish_gradients(
    config: Any,
    chunks: list[torch.nn.Module],
    tokens: torch.Tensor,
    force_all_reduce: bool | None,
) -> None:
    """What upstream does with gradients after the last backward, and what precedes it here."""
    replicas = _replicas(chunks)
    if replicas is not None:
        replicas.add_gradients(chunks)
    if config.finalize_model_grads_func is None:
        return
    with naming_lost("the sum of the gradients", range(torch.distributed.get_world_size())):
        config.finalize_model_grads_func(
            chunks,
            tokens if config.calculate_per_token_loss else None,
            force_all_reduce=force_all_reduce,
        )


def _share_objects(mine: dict[int, Any], group: Any) -> list[Any]:
    """What each micro-batch gave, in order, on every rank.

    Pickled, unlike all else that ranks tell each other: it is whatever a function of the user's
    makes, and comes from a rank that runs the same function.
    """
    everyone: list[Any] = [None] * group.size()
    torch.distributed.all_gather_object(everyone, mine, group=group)
    together = {number: report for reports in everyone for number, report in reports.items()}
    return [together[number] for number in sorted(together)]
