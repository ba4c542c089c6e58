"""The rehearsal of one rank: the product's own training, for one step, over answers.

Recipe, arguments, configuration, groups, chunks, gradient buffers, optimizer, schedule, dispatch
and recomputation are those of the run. What is not there is given: other ranks, data, routing,
values.
"""

import contextlib
import dataclasses
import weakref
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.training import get_args
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from dsv3_plugin.checkpoint.restricted import restricted_reading
from dsv3_plugin.dispatch.moe_layer import MoELayer
from dsv3_plugin.machine import Machine
from dsv3_plugin.pipeline.chunks import PlacedLayout
from dsv3_plugin.planner.answering import answers_here
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.rehearsal.accumulation import Accumulation
from dsv3_plugin.rehearsal.answering import answered, give_answers
from dsv3_plugin.rehearsal.configuration import refusals
from dsv3_plugin.rehearsal.device import Device
from dsv3_plugin.rehearsal.known import KnownValues
from dsv3_plugin.rehearsal.launched import Collectives, Kernels
from dsv3_plugin.rehearsal.micro_batches import MicroBatches
from dsv3_plugin.rehearsal.observe import Observer, count_waits
from dsv3_plugin.rehearsal.parts import claim_states, tell_makers_apart
from dsv3_plugin.rehearsal.refusal import refusal
from dsv3_plugin.rehearsal.report import Answered, Finding, Issued, RankReport, Request
from dsv3_plugin.rehearsal.routing import even_routing, skewed_routing
from dsv3_plugin.rehearsal.samples import give_samples
from dsv3_plugin.rehearsal.storages import Storages
from dsv3_plugin.rehearsal.sums import Sums
from dsv3_plugin.rehearsal.te.kernels import Kernel
from dsv3_plugin.rehearsal.world import World
from dsv3_plugin.stages import stage_named
from dsv3_plugin.training import trainer, upstream_arguments
from dsv3_plugin.training.hooks import Hook, Step
from dsv3_plugin.training.patches import TABLE
from dsv3_plugin.training.run import Run
from dsv3_plugin.training.upstream_arguments import RefusedByUpstream
from dsv3_plugin.upstream import patching
from dsv3_plugin.upstream.replace import Replacer


class _Enough(BaseException):
    """Ends the training whose step has been seen."""


def refused(recipe: Recipe, machine: Machine) -> Finding | None:
    """What upstream has against the arguments of a run as they are: its batches, its data, all.

    A world has to be joined already.
    """
    try:
        with restricted_reading():
            upstream_arguments.check(recipe, machine)
    except RefusedByUpstream as error:
        return refusal("these settings", error.message)
    return None


def rehearse(
    request: Request, recipe: Recipe, machine: Machine, world: World, device: Device
) -> RankReport:
    """Be the rank of the request, in a world that is joined already.

    Args:
        request: how far to go, and with what.
        recipe: closed, and without what needs more than a step (`for_one_step`).
        machine: what the rank runs on.
        world: the fake one.
        device: what this process has become.
    """
    patching.apply(TABLE)
    pipeline_rank = request.rank // (recipe.parallel.processes // recipe.parallel.pipeline)
    report = RankReport(request.rank, pipeline_rank)
    run = Run(recipe, recipe.run_folder, machine)
    try:
        with restricted_reading():
            settings = trainer.configured(run)
    except RefusedByUpstream as error:
        return dataclasses.replace(report, findings=(refusal("these settings", error.message),))
    get_args().pretrained_checkpoint = None  # weights are given like all values
    findings = refusals(settings.model.transformer)
    report = dataclasses.replace(report, findings=tuple(findings))
    if request.depth == "configuration" or any(finding.stops for finding in findings):
        return report
    return _built_and_stepped(request, run, settings, report, world, device)


def _built_and_stepped(
    request: Request,
    run: Run,
    settings: trainer.Configured,
    report: RankReport,
    world: World,
    device: Device,
) -> RankReport:
    known = KnownValues()
    kind = "cuda" if run.recipe.on_gpu(run.machine) else "cpu"
    storages, kernels, collectives = Storages(kind), Kernels(kind), Collectives(world)
    sums, accumulation = Sums(), Accumulation()
    micro_batches = MicroBatches(storages, request.micro_batches)
    observer = Observer(known, [storages, kernels, collectives, sums, accumulation])

    def launched(kernel: Kernel) -> None:
        kernels.launched(kernel)
        accumulation.launched(kernel)

    device.launches.told = launched
    replacer = Replacer()
    tell_makers_apart(storages, replacer)
    micro_batches.follow(replacer)
    _follow_resizing(storages, replacer)
    _share_storages(replacer)
    _follow_pairs(replacer)
    if kind == "cuda":
        count_waits(observer, replacer)
    _answer_reading(observer, replacer)
    _let_messages_leave(replacer)
    give_samples(run.recipe, known, replacer)
    if answers_here(run.recipe):
        give_answers(known, storages, replacer)
    all_experts = _give_routing(run.recipe, known, request, replacer)
    watch = _Watch(run, storages, [kernels, observer], sums, accumulation, world, all_experts)
    stage = dataclasses.replace(stage_named(run.recipe.stage)(run), hooks=[watch])
    with contextlib.suppress(_Enough), device.fake_mode(allow_non_fake_inputs=True), observer:
        trainer.train_configured(run, stage, settings)
    return dataclasses.replace(
        report,
        groups=world.groups,
        megatrons_groups=world.megatrons,
        groups_asked_here=world.asked_here,
        made_together=tuple(world.made_together),
        states=watch.states,
        memory=watch.memory,
        moments=watch.moments,
        answered=watch.answered,
        operations=kernels.counted(),
        kept=_along_the_model(micro_batches.kept, settings),
        growth=micro_batches.growth,
        sums=sums.by_parameter(),
        without_gradient=watch.without_gradient,
        overwritten=tuple(accumulation.overwritten),
        rounded=accumulation.rounded,
        synchronisations=dict(observer.waits),
        drained=dict(observer.drained),
        built_with=tuple(world.issued[: watch.built_with]),
        collectives=tuple(world.issued[watch.began :]),
        forms=_between_stages(world.issued[watch.began :]),
    )


def _between_stages(issued: Sequence[Issued]) -> tuple[str, ...]:
    """Forms of the messages that a rank exchanged with others of its pipeline."""
    pipeline = {*dist.get_process_group_ranks(parallel_state.get_pipeline_model_parallel_group())}
    forms = (one.said for one in issued if one.to_one and pipeline.issuperset(one.group))
    return tuple(dict.fromkeys(form for form in forms if form))


def _along_the_model(kept: dict[int, int], settings: trainer.Configured) -> tuple[int, ...]:
    """What is said of stages of the schedule, in the order of the model's."""
    layout = settings.model.transformer.pipeline_model_parallel_layout
    if not kept or not isinstance(layout, PlacedLayout):
        return ()
    return tuple(kept[stage] for stage in sorted(kept, key=layout.placement.model_stage))


class _Watch(Hook):
    """Looks at the rank before, in and after its step."""

    def __init__(
        self,
        run: Run,
        storages: Storages,
        counters: Sequence[Any],
        sums: Sums,
        accumulation: Accumulation,
        world: World,
        all_experts: bool,
    ) -> None:
        self._run = run
        self._storages = storages
        self._counters = counters
        self._sums = sums
        self._accumulation = accumulation
        self._world = world
        self._all_experts = all_experts
        self.without_gradient: tuple[str, ...] = ()
        self.states: dict[str, int] = {}
        self.memory: dict[str, int] = {}
        self.moments: dict[str, int] = {}
        self.answered: Answered | None = None
        self.built_with = self.began = 0  # collectives before the engine's, and before the step

    def before_step(self, step: Step) -> None:
        # As after the first step, or a resume: an optimizer makes its moments when it first moves.
        step.optimizer.step()
        claim_states(self._storages, list(step.model), step.optimizer)
        self.states = dict(self._storages.now)
        self.built_with = len(self._world.issued)
        if answers_here(self._run.recipe):
            self.answered = answered(step.model, self._run.recipe, self._storages)
            self.moments["answering"] = sum(self.answered.memory.values())
        self._sums.watch(step.model)
        self._accumulation.watch(step.model, experts=self._all_experts)
        self._storages.begin_moment()
        self.began = len(self._world.issued)
        for counter in self._counters:
            counter.restart()

    def after_backward(self, step: Step) -> None:
        self.memory = self._storages.fullest
        self.moments["step"] = self._storages.most
        self.without_gradient = tuple(self._accumulation.missing())
        self._storages.begin_moment()

    def after_step(self, step: Step) -> None:
        self.moments["optimizer"] = self._storages.most
        if self._storages.most > self.moments["step"]:
            self.memory = self._storages.fullest
        if self.answered is not None and self.moments["answering"] > sum(self.memory.values()):
            self.memory = self.answered.memory
        raise _Enough


def _follow_resizing(storages: Storages, replacer: Replacer) -> None:
    """Recomputation empties and fills storages past every operation."""

    def resize(original: Any) -> Any:
        def resized(self: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
            result = original(self, size)
            storages.resized(self)
            return result

        return resized

    replacer.wrap("torch:UntypedStorage.resize_", resize)


def _share_storages(replacer: Replacer) -> None:
    """What is recomputed is put behind what was kept, by C++ that upstream compiles.

    Neither has values here, so one need only live as long as the other.
    """

    def share(kept: torch.Tensor, again: torch.Tensor) -> None:
        weakref.finalize(kept.untyped_storage(), lambda storage: None, again.untyped_storage())

    replacer.set("megatron.core.tensor_parallel.random:_get_share_storage", lambda: share)


def _follow_pairs(replacer: Replacer) -> None:
    """The backward of an overlapped pair runs on a thread of its own."""

    def settings(original: Any) -> Any:
        def with_modes() -> list[Any]:
            modes = torch.utils._python_dispatch._get_current_dispatch_mode_stack()
            return [*original(), *modes]

        return with_modes

    replacer.wrap("dsv3_plugin.distributed.overlap:_thread_settings", settings)


def _answer_reading(observer: Observer, replacer: Replacer) -> None:
    """Where values are read past every operation: of what is in a list, or as numpy's."""

    def tensor(original: Any) -> Any:
        def of(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
            def value(leaf: Any) -> Any:
                return observer.answer(leaf) if isinstance(leaf, FakeTensor) else leaf

            data = pytree.tree_map(value, data)
            with _disable_current_modes():
                values = original(data, *args, **kwargs)
            made = torch.empty(values.shape, dtype=values.dtype, device=device or "cpu")
            made.requires_grad_(values.requires_grad)
            return observer.known.give(made, values)

        return of

    def tolist(self: FakeTensor) -> Any:
        with _disable_current_modes():
            return observer.values(self).tolist()

    def numpy(original: Any) -> Any:
        def of(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if isinstance(self, FakeTensor):
                with _disable_current_modes():
                    return original(observer.values(self))
            return original(self, *args, **kwargs)

        return of

    def swap(one: FakeTensor, other: FakeTensor) -> None:
        # A module's weights are moved or cast; torch would exchange the insides of two tensors,
        # and cannot where something refers to them weakly.
        one.data = other.data
        one.fake_device = other.fake_device

    replacer.set("torch.utils:swap_tensors", swap)
    replacer.wrap("torch:tensor", tensor)
    replacer.set("torch._subclasses.fake_tensor:FakeTensor.tolist", tolist)
    replacer.wrap("torch:Tensor.numpy", numpy)


class _OnItsWay:
    """A message that has left once something else was posted: a fake one never says that it has."""

    def __init__(self) -> None:
        self._asked = False

    def is_completed(self) -> bool:
        before, self._asked = self._asked, True
        return before

    def wait(self, *timeout: Any) -> None:
        pass


def _let_messages_leave(replacer: Replacer) -> None:
    """What was sent is held until it has left; elsewhere that is a moment."""

    def posted(original: Any) -> Any:
        def works(operations: list[Any]) -> list[Any]:
            original(operations)
            return [_OnItsWay() for _ in operations]

        return works

    replacer.wrap("dsv3_plugin.pipeline.p2p:batch_isend_irecv", posted)


def _give_routing(recipe: Recipe, known: KnownValues, request: Request, replacer: Replacer) -> bool:
    """The same map for every layer and micro-batch, known where a dispatcher asks for counts.

    Returns:
        Whether each of the rank's experts has tokens.
    """
    model, parallel = recipe.model, recipe.parallel
    if not model.moe_layers:
        return True
    tokens = recipe.training.micro_batch_size * recipe.data.seq_length // parallel.context
    limits = model.moe_router_num_groups or 1, model.moe_router_group_topk or 1
    even = even_routing(
        tokens // (parallel.tensor), model.num_moe_experts, model.moe_router_topk, *limits
    )
    per_rank = model.num_moe_experts // parallel.expert
    first = request.rank % parallel.expert * per_rank
    own = slice(first, first + per_rank)
    given = skewed_routing(even, own, request.imbalance, *limits)

    def preprocess(original: Any) -> Any:
        def with_routing(self: Any, hidden: Any, probs: Any, routing_map: torch.Tensor) -> Any:
            known.give(routing_map, given)
            return original(self, hidden, probs, routing_map)

        return with_routing

    replacer.wrap(f"{MoELayer.__module__}:{MoELayer.__qualname__}.preprocess", preprocess)
    return bool(given[:, own].any(0).all())
