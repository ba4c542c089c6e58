"""Routed experts of the local backend: stacked weights and grouped matrix products.

Upstream's local experts are a Python list of MLPs, each with its own autograd graph. Here all
experts of a rank are two parameters and one autograd function, each of whose products is one
`torch.nn.functional.grouped_mm`, on a CPU as on a GPU. (Walking over the experts while their rows
are in the cache was tried on the CPU: equal for 16 experts, a tenth to a quarter slower for 64
and more.)

In distributed checkpoints the two parameters carry upstream's keys and global shapes, one tensor
each, so checkpoints (optimizer state too) pass between this class, upstream's SequentialMLP and
its TEGroupedMLP.
"""

from collections.abc import Callable
from functools import partial
from itertools import compress
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.dist_checkpointing import ShardedObject, ShardedTensor
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.random import (
    get_cuda_rng_tracker,
    get_expert_parallel_rng_tracker_name,
)
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from dsv3_plugin.errors import UserError
from dsv3_plugin.model.linear import WeightGradients

GROUPED_ROW_BYTES = 16
"""`torch.nn.functional.grouped_mm` takes rows of whole multiples of this, on every device."""


class GroupedExperts(MegatronModule):
    """SwiGLU experts: out = w₂ᵉ (p · silu(gᵉ) ∘ uᵉ) with [gᵉ; uᵉ] = w₁ᵉ x for each row's expert e.

    Attributes:
        weight1: [experts on this rank, 2 · ffn, hidden]; the gate's rows come first.
        weight2: [experts on this rank, hidden, ffn].
    """

    def __init__(
        self,
        num_local_experts: int,
        config: TransformerConfig,
        pg_collection: ProcessGroupCollection,
        name: str | None = None,
    ) -> None:
        super().__init__(config=config)
        if pg_collection.expt_tp.size() > 1:
            raise UserError(
                "The local backend's experts cannot be split by tensor parallelism: "
                "set expert_tensor_parallel_size to 1."
            )
        row = GROUPED_ROW_BYTES // config.params_dtype.itemsize
        for size in ("hidden_size", "moe_ffn_hidden_size"):
            if getattr(config, size) % row:
                raise UserError(
                    f"The local backend's experts need {size} to be a multiple of {row} in "
                    f"{str(config.params_dtype).removeprefix('torch.')}, not "
                    f"{getattr(config, size)}: rows of a grouped product are multiples "
                    f"of {GROUPED_ROW_BYTES} bytes."
                )
        self.num_local_experts = num_local_experts
        self.ep_group = pg_collection.ep
        self.dp_group = pg_collection.expt_dp
        self.weight_gradients = WeightGradients(postpone=config.delay_wgrad_compute)
        ffn, hidden = config.moe_ffn_hidden_size, config.hidden_size
        self.weight1 = self._parameter((2 * ffn, hidden), config.init_method)
        self.weight2 = self._parameter((hidden, ffn), config.output_layer_init_method)

    def _parameter(
        self, shape: tuple[int, int], init_method: Callable[[Tensor], Any]
    ) -> torch.nn.Parameter:
        """All experts' matrices of one kind; each is drawn as upstream draws a single expert's."""
        weight = torch.nn.Parameter(
            torch.empty(
                (self.num_local_experts, *shape),
                dtype=self.config.params_dtype,
                device="cpu" if self.config.use_cpu_initialization else torch.cuda.current_device(),
            )
        )
        if self.config.perform_initialization:
            with (
                torch.no_grad(),
                get_cuda_rng_tracker().fork(get_expert_parallel_rng_tracker_name()),
            ):
                for expert in weight:
                    init_method(expert)
        # Upstream's mark for "reduce over expert data parallel ranks, not over all". Upstream sets
        # it where the two differ; but it also gives marked weights an optimizer of their own, and
        # only a run with as many optimizers can resume their states: so they always have one.
        weight.allreduce = False
        weight.skip_backward_post_hook = True
        return weight

    def forward(
        self, rows: Tensor, tokens_per_expert: Tensor, permuted_probs: Tensor
    ) -> tuple[Tensor, None]:
        """Apply each row's expert.

        Args:
            rows: [rows, hidden], sorted by expert.
            tokens_per_expert: [experts on this rank], how many rows each expert has.
            permuted_probs: [rows], the router's weight of each row.

        Returns:
            [rows, hidden], weighted by the router; no bias.
        """
        output = _Experts.apply(
            rows,
            permuted_probs,
            self.weight1,
            self.weight2,
            tokens_per_expert,
            self.weight_gradients,
        )
        return output, None

    def backward_dw(self) -> None:
        """Compute the oldest weight gradients owed (see model/linear.py)."""
        self.weight_gradients.pay_oldest()

    def register_wgrad_accumulation_and_reduce_hooks(self, hook: Callable[[], None]) -> None:
        """Upstream's DDP gives its hooks here when its `delay_wgrad_compute` is set."""
        self.weight_gradients.add_hook(hook)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        for name in [n for n in state_dict if n.startswith(prefix) and n.endswith("_extra_state")]:
            del state_dict[name]  # upstream's empty states, see sharded_state_dict
        super()._load_from_state_dict(state_dict, prefix, *args)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, ShardedTensor | ShardedObject]:
        """Upstream's keys `experts.linear_fc{1,2}.weight`, the expert axis before the matrix."""
        if (metadata or {}).get("singleton_local_shards", False):
            raise UserError(
                "Checkpoints with one key per expert (singleton_local_shards) are not supported by "
                "the local backend's experts."
            )
        rank, size = self.ep_group.rank(), self.ep_group.size()
        replica_id = (0, 0, self.dp_group.rank())
        expert_axis = len(sharded_offsets)
        sharded: dict[str, ShardedTensor | ShardedObject] = {}
        for name, linear in (("weight1", "linear_fc1"), ("weight2", "linear_fc2")):
            sharded[f"{prefix}{name}"] = ShardedTensor.from_rank_offsets(
                f"{prefix}experts.{linear}.weight",
                getattr(self, name),
                *sharded_offsets,
                (expert_axis, rank, size),
                replica_id=replica_id,
                prepend_axis_num=expert_axis,
            )
            # Upstream's linears save an empty state each, and want to find it again.
            for expert in range(self.num_local_experts):
                index = rank * self.num_local_experts + expert
                sharded[f"{prefix}{linear}.{expert}._extra_state"] = ShardedObject(
                    f"{prefix}experts.{linear}._extra_state",
                    None,
                    (*(size for _, _, size in sharded_offsets), size * self.num_local_experts),
                    (*(offset for _, offset, _ in sharded_offsets), index),
                    replica_id,
                )
        return sharded


class _Experts(torch.autograd.Function):
    """One grouped product per matrix; what lies between them works in place, pass by pass."""

    @staticmethod
    def forward(ctx, x, probs, weight1, weight2, tokens_per_expert, owed) -> Tensor:
        ends = tokens_per_expert.to(x.device).cumsum(0).to(torch.int32)
        gate_up = F.grouped_mm(x, weight1.transpose(1, 2), offs=ends)
        gate, up = gate_up.chunk(2, dim=-1)
        hidden = F.silu(gate).mul_(up).mul_(probs[:, None])
        ctx.save_for_backward(x, probs, gate_up, ends)
        ctx.weights = weight1, weight2  # themselves, as in a linear layer
        ctx.owed = owed
        return F.grouped_mm(hidden, weight2.transpose(1, 2), offs=ends)

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, probs, gate_up, ends = ctx.saved_tensors
        weight1, weight2 = ctx.weights
        grad_output = grad_output.contiguous()
        grad_gate_up = torch.empty_like(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        grad_gate, grad_up = grad_gate_up.chunk(2, dim=-1)
        activated = F.silu(gate)
        hidden = activated * up
        grad_hidden = F.grouped_mm(grad_output, weight2, offs=ends)
        grad_probs = (grad_hidden.to(probs.dtype) * hidden).sum(-1)
        hidden.mul_(probs[:, None])
        grad_hidden.mul_(probs[:, None])
        torch.mul(grad_hidden, activated, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad_hidden.mul_(up), gate, grad_input=grad_gate)
        grad_x = F.grouped_mm(grad_gate_up, weight1, offs=ends)

        products = (
            (weight1, partial(_weight_gradients, grad_gate_up, x.detach(), ends)),
            (weight2, partial(_weight_gradients, grad_output, hidden, ends)),
        )
        wanted = ctx.needs_input_grad[2:4]  # a frozen weight is owed nothing
        arrived = iter(ctx.owed.arrive(list(compress(products, wanted))))
        grad_weight1, grad_weight2 = (next(arrived) if is_wanted else None for is_wanted in wanted)
        return grad_x, grad_probs, grad_weight1, grad_weight2, None, None


def _weight_gradients(grads: Tensor, inputs: Tensor, ends: Tensor, out: Tensor | None) -> Tensor:
    """Per expert, (gradient of its output)ᵀ · (its input), made or added to `out`."""
    if out is None:
        return F.grouped_mm(grads.t(), inputs, offs=ends)
    if out.is_cuda:
        return out.add_(F.grouped_mm(grads.t(), inputs, offs=ends))
    # A grouped product cannot add, and on a CPU a temporary of all weights costs more than calls.
    sizes = ends.diff(prepend=ends.new_zeros(1)).tolist()
    for gradient, g, i in zip(out, grads.split(sizes), inputs.split(sizes), strict=True):
        gradient.addmm_(g.t(), i)
    return out
