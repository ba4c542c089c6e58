"""Overlapped pairs on a GPU: upstream's schedule plan, forward and backward layer by layer.

Upstream cuts a chunk's layers into nodes (attention with router, dispatch, experts, combine) and
runs the forward of one micro-batch beside the backward of another, computation on one CUDA stream
and all-to-all on a second: `TransformerModelChunkSchedulePlan.run`. `ChunkPlan` adds the backward
in two halves; `PlannedComputation` lets the executor's forwards and backwards run by plans.

A backward can only run node by node where its forward did, so all of them do, paired or not.
`plan_serves` says when; elsewhere a pair overlaps on two threads (`distributed.overlap`).
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from megatron.core.enums import Fp8Recipe
from megatron.core.models.common.model_chunk_schedule_plan import TransformerModelChunkSchedulePlan
from megatron.core.pipeline_parallel.schedules import backward_step
from megatron.core.pipeline_parallel.utils import set_streams
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import get_attr_wrapped_model

from dsv3_plugin.dispatch.moe_layer import MoELayer, dispatch_of
from dsv3_plugin.pipeline.tasks import BackwardTask, ForwardResult, ForwardTask, run_forward


def plan_serves(config: TransformerConfig, device: torch.device) -> bool:
    """Whether upstream's plan computes these chunks, and computes them right.

    Its conditions are those that upstream checks for `overlap_moe_expert_parallel_comm`, and what
    its nodes leave out:

    * A node's input is freed once it was sent to another rank. With one expert-parallel rank, and
      before the first hop of `two_hop`, that input is a view of what the backward still needs.
    * The final norm is part of an expert layer's last node, and the layer of MTP has to be one.
    * FP8 with delayed scaling needs a context around the whole run.

    Packs it does not serve at all: a layer that predicts ahead refuses them.
    """
    return (
        device.type == "cuda"
        and config.transformer_impl == "transformer_engine"
        and (config.bf16 or config.fp16)
        and config.expert_model_parallel_size > 1
        and _dispatcher_can_be_cut(config)
        and _last_layer_has_experts(config)
        and config.mtp_num_layers in (None, 0, 1)
        and not config.moe_shared_expert_overlap
        and config.recompute_granularity != "full"
        and "moe" not in config.recompute_modules
        and config.cuda_graph_impl == "none"
        and not config.fine_grained_activation_offloading
        and not config.moe_paged_stash
        and not (config.fp8 and config.fp8_recipe == Fp8Recipe.delayed)
    )


def _dispatcher_can_be_cut(config: TransformerConfig) -> bool:
    if dispatch_of(config).kind == "two_hop":
        return False
    if config.moe_token_dispatcher_type == "flex":
        return config.moe_flex_dispatcher_backend in ("deepep", "hybridep")
    return config.moe_token_dispatcher_type == "alltoall"


def _last_layer_has_experts(config: TransformerConfig) -> bool:
    frequency = config.moe_layer_freq
    if config.num_moe_experts is None:
        return False
    if isinstance(frequency, int):
        return (config.num_layers - 1) % frequency == 0
    return bool(frequency[-1])


class ChunkPlan(TransformerModelChunkSchedulePlan):
    """One micro-batch's way through one chunk, forward and later backward.

    Attributes:
        weights_owed: the backward leaves its weight gradients owed, for `SplitBackward.weights`.
    """

    weights_owed = False

    @staticmethod
    def run(
        forward: "ChunkPlan | None",
        backward: "ChunkPlan | None",
        gradient: torch.Tensor | None = None,
        **hooks: Any,
    ) -> torch.Tensor | None:
        """Run a forward, a backward, or both layer by layer.

        With `config.delay_wgrad_compute` upstream's run computes weight gradients where they hide
        an all-to-all, unless they are to stay owed.

        Args:
            forward: the micro-batch to run forward.
            backward: another, run forward before.
            gradient: of the backward's output.
            hooks: upstream's, called before and after.

        Returns:
            The forward's output.
        """
        if backward is not None and backward.weights_owed:
            for layer in backward._transformer_layers:
                for node in (layer.pre_dispatch_computation, layer.mlp):
                    node.bwd_dw_callables = []
        return TransformerModelChunkSchedulePlan.run(forward, backward, gradient, **hooks)


class _Planned(NamedTuple):
    """A forward that ran: its plan, and the output that a loss was made of on the last stage."""

    plan: ChunkPlan
    output: torch.Tensor


class PlannedComputation:
    """Forwards and backwards by plans (a `tasks.Computation`)."""

    def __init__(self, config: TransformerConfig) -> None:
        set_streams(high_priority=config.high_priority_a2a_comm_stream)

    def forward(self, task: ForwardTask) -> ForwardResult:
        return _planned_forward(task, lambda plan: ChunkPlan.run(plan, None))

    def backward(self, task: BackwardTask) -> torch.Tensor | None:
        gradient = _gradient_of_plan(task)
        with _weight_gradients(task):
            ChunkPlan.run(None, task.forward.kept.plan, gradient)
        return _gradient_of_input(task)

    def run_pair(
        self, forward: ForwardTask, backward: BackwardTask
    ) -> tuple[ForwardResult, torch.Tensor | None]:
        """The forward's plan runs layer by layer beside the backward's."""
        gradient = _gradient_of_plan(backward)
        with _weight_gradients(backward):
            result = _planned_forward(
                forward, lambda plan: ChunkPlan.run(plan, backward.forward.kept.plan, gradient)
            )
        return result, _gradient_of_input(backward)


def _planned_forward(task: ForwardTask, run: Callable[[ChunkPlan], torch.Tensor]) -> ForwardResult:
    """A forward whose call of the model becomes a plan, run by `run`."""
    chunk = _PlanningChunk(task.chunk, run)
    return replace(run_forward(task, chunk), kept=chunk.planned)


def _gradient_of_plan(task: BackwardTask) -> torch.Tensor:
    """The gradient of the plan's output: on the last stage the loss has a graph of its own."""
    if task.gradient is not None:
        return task.gradient
    return backward_step(task.forward.kept.output, task.forward.output, None, task.config)


@contextlib.contextmanager
def _weight_gradients(task: BackwardTask) -> Iterator[None]:
    """Run a backward's plan inside: it leaves weight gradients owed where the task says so."""
    task.forward.kept.plan.weights_owed = task.weights_owed
    # Delayed weight gradients of a whole backward are paid by the plan's own run.
    owed = task.weights_owed or task.config.delay_wgrad_compute
    with task.split.keeping_weights_owed(owed):
        yield


def _gradient_of_input(task: BackwardTask) -> torch.Tensor | None:
    activation = task.forward.activation
    return None if activation is None else activation.grad


@contextlib.contextmanager
def _routers_asking(model: torch.nn.Module, plan: ChunkPlan) -> Iterator[None]:
    """Inside, routers ask the plan for the padding, of which upstream's nodes do not tell them.

    No backward of a plan that is served calls a router, and no two forwards run at a time.
    """

    def padding() -> torch.Tensor | None:
        mask = plan.state.padding_mask  # shifted meanwhile where a layer predicts ahead
        return None if mask is None else mask.transpose(0, 1).bool()

    layers = [module for module in model.modules() if isinstance(module, MoELayer)]
    for layer in layers:
        layer.padding_of_plan = padding
    yield
    for layer in layers:
        layer.padding_of_plan = None


class _PlanningChunk:
    """A chunk as `forward_step` sees it; called, it runs a plan instead of the model's forward."""

    def __init__(self, chunk: torch.nn.Module, run: Callable[[ChunkPlan], torch.Tensor]) -> None:
        self.module = chunk
        self._run = run
        self.planned: _Planned

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def __call__(self, *inputs: Any, **named: Any) -> torch.Tensor:
        model = get_attr_wrapped_model(self.module, "decoder", return_model_obj=True)
        plan = ChunkPlan(model, *inputs, **named)
        with _routers_asking(model, plan):
            output = self._run(plan)
        if model.post_process:
            # The loss has a graph of its own; its gradient enters the plan from outside.
            output = output.detach().requires_grad_()
        self.planned = _Planned(plan, output)
        return output
