"""Overlapped pairs on a GPU: upstream's schedule plan, forward and backward layer by layer.

Upstream cuts a chunk's layers into nodes (attention with router, dispatch, experts, combine) and
runs the forward of one micro-batch beside the backward of another, computation on one CUDA stream
and all-to-all on a second: `TransformerModelChunkSchedulePlan.run`. `ChunkPlan` adds the backward
in two halves; `PlannedSteps` lets the executor's forwards and backwards run by plans.

A backward can only run node by node where its forward did, so all of them do, paired or not.
`plan_serves` says when; elsewhere a pair takes turns (`turns.py`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from megatron.core.enums import Fp8Recipe
from megatron.core.models.common.model_chunk_schedule_plan import TransformerModelChunkSchedulePlan
from megatron.core.pipeline_parallel.schedules import backward_step, forward_step
from megatron.core.pipeline_parallel.utils import set_streams
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import get_attr_wrapped_model

from dsv3_plugin.dispatch.moe_layer import Dispatch
from dsv3_plugin.pipeline.split_backward import SplitBackward


def plan_serves(config: TransformerConfig, device: torch.device) -> bool:
    """Whether upstream's plan computes these chunks, and computes them right.

    Its conditions are those that upstream checks for `overlap_moe_expert_parallel_comm`, and what
    its nodes leave out:

    * A node's input is freed once it was sent to another rank. With one expert-parallel rank, and
      before the first hop of `two_hop`, that input is a view of what the backward still needs.
    * The final norm is part of an expert layer's last node, and the layer of MTP has to be one.
    * FP8 with delayed scaling needs a context around the whole run.
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
    if getattr(config, "dispatch", Dispatch()).kind == "two_hop":
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


class PlannedSteps:
    """Forward and backward of a rank's chunks in one step, by plans.

    The three methods are those of `execute.StepsInTurn`.
    """

    def __init__(self, config: TransformerConfig) -> None:
        set_streams(high_priority=config.high_priority_a2a_comm_stream)
        self._partner: Callable[[], None] | None = None
        self._taken_along: tuple[ChunkPlan | None, torch.Tensor | None] = (None, None)

    def forward_step(
        self, function: Callable[..., Any], batches: Any, chunk: torch.nn.Module, *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Upstream's `forward_step`, whose call of the model runs a plan."""
        planning = _PlanningChunk(chunk, self._run_forward)
        output, tokens = forward_step(function, batches, planning, *args, **kwargs)
        output.planned = planning.planned  # the backward has nothing else to know it by
        return output, tokens

    def backward_step(
        self,
        activation: torch.Tensor | None,
        output: torch.Tensor,
        gradient: torch.Tensor | None,
        config: TransformerConfig,
        split: SplitBackward,
        weights_owed: bool,
    ) -> torch.Tensor | None:
        """The gradient of a chunk's input.

        Args:
            activation: the chunk's input; None on the first stage.
            output: what `forward_step` returned.
            gradient: of the output; None on the last stage, whose output is the loss.
            config: of the chunk.
            split: the chunk's weight gradients.
            weights_owed: leave them owed.
        """
        planned, output.planned = output.planned, None
        if gradient is None:
            gradient = backward_step(planned.output, output, None, config)
        planned.plan.weights_owed = weights_owed
        # Delayed weight gradients of a whole backward are paid by the plan's own run.
        with split.keeping_weights_owed(weights_owed or config.delay_wgrad_compute):
            self._run_backward(planned.plan, gradient)
        return None if activation is None else activation.grad

    def run_pair(self, forward: Callable[[], None], backward: Callable[[], None]) -> None:
        """Run a forward and a backward as one: the forward's plan takes the backward's along."""
        self._partner = forward
        backward()

    def _run_backward(self, plan: ChunkPlan, gradient: torch.Tensor) -> None:
        partner, self._partner = self._partner, None
        if partner is None:
            ChunkPlan.run(None, plan, gradient)
        else:
            self._taken_along = (plan, gradient)
            partner()

    def _run_forward(self, plan: ChunkPlan) -> torch.Tensor:
        taken_along, self._taken_along = self._taken_along, (None, None)
        return ChunkPlan.run(plan, *taken_along)


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
        output = self._run(plan)
        if model.post_process:
            # The loss has a graph of its own; its gradient enters the plan from outside.
            output = output.detach().requires_grad_()
        self.planned = _Planned(plan, output)
        return output
