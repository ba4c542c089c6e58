"""Routed experts of the local backend: stacked weights and grouped matrix products.

Upstream's local experts are a Python list of MLPs, each with its own autograd graph. Here all
experts of a rank are two parameters and one autograd function. On a CPU that function walks over
the experts once forward and once backward: while an expert's rows are in the cache, they go through
the gate and up projection, SwiGLU, the router's weight and the down projection. On a GPU each
product is one `torch.nn.functional.grouped_mm`.

In distributed checkpoints the two parameters carry upstream's keys and global shapes, one tensor
each, so checkpoints (optimizer state too) pass between this class, upstream's SequentialMLP and
its TEGroupedMLP.
"""

from collections.abc import Callable, Sequence
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
from dsv3_plugin.model.linear import Owed, WeightGradients

Rows = Sequence[tuple[int, int]]
"""Per expert, the first row of its tokens and the row after the last."""


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
        product = _OnGpu if rows.is_cuda else _OnCpu
        output = product.apply(
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


def _halves(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    gate, up = gate_up.chunk(2, dim=-1)
    return gate, up


class _OnCpu(torch.autograd.Function):
    """One pass over the experts; the products write into buffers made once for all of them."""

    @staticmethod
    def forward(ctx, x, probs, weight1, weight2, tokens_per_expert, owed) -> Tensor:
        rows = _row_ranges(tokens_per_expert)
        gate_up = x.new_empty(x.shape[0], weight1.shape[1])
        output = x.new_empty(x.shape[0], weight2.shape[1])
        for expert, (start, end) in enumerate(rows):
            if start == end:
                continue
            torch.mm(x[start:end], weight1[expert].t(), out=gate_up[start:end])
            gate, up = _halves(gate_up[start:end])
            hidden = F.silu(gate).mul_(up).mul_(probs[start:end, None])
            torch.mm(hidden, weight2[expert].t(), out=output[start:end])
        ctx.save_for_backward(x, probs, weight1, weight2, gate_up)
        ctx.rows, ctx.owed = rows, owed
        return output

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, probs, weight1, weight2, gate_up = ctx.saved_tensors
        grad_output = grad_output.contiguous()
        grad_x = torch.empty_like(x)
        grad_probs = torch.empty_like(probs)
        grad_gate_up = torch.empty_like(gate_up)
        hidden = x.new_empty(x.shape[0], weight2.shape[2])
        for expert, (start, end) in enumerate(ctx.rows):
            if start == end:
                continue
            gate, up = _halves(gate_up[start:end])
            grad_gate, grad_up = _halves(grad_gate_up[start:end])
            weight = probs[start:end, None]
            activated = F.silu(gate)
            h = torch.mul(activated, up, out=hidden[start:end])
            grad_h = torch.mm(grad_output[start:end], weight2[expert])
            torch.sum(grad_h * h, dim=-1, out=grad_probs[start:end])
            h.mul_(weight)
            grad_h.mul_(weight)
            torch.mul(grad_h, activated, out=grad_up)
            torch.ops.aten.silu_backward.grad_input(grad_h.mul_(up), gate, grad_input=grad_gate)
            torch.mm(grad_gate_up[start:end], weight1[expert], out=grad_x[start:end])
        gradients = _weight_products(
            ctx.rows, weight1, weight2, x, grad_gate_up, hidden, grad_output
        )
        grad_weight1, grad_weight2 = ctx.owed.arrive(gradients)
        return grad_x, grad_probs, grad_weight1, grad_weight2, None, None


def _row_ranges(tokens_per_expert: Tensor) -> Rows:
    ranges, start = [], 0
    for count in tokens_per_expert.tolist():
        ranges.append((start, start + count))
        start += count
    return ranges


def _weight_products(
    rows: Rows,
    weight1: Tensor,
    weight2: Tensor,
    x: Tensor,
    grad_gate_up: Tensor,
    hidden: Tensor,
    grad_output: Tensor,
) -> Owed:
    """The gradients of both weights: per expert, (gradient of its output)ᵀ · (its input)."""

    def product(weight: Tensor, grads: Tensor, inputs: Tensor) -> Callable:
        def compute(out: Tensor | None) -> Tensor:
            add = out is not None
            out = out if add else torch.empty_like(weight)
            for expert, (start, end) in enumerate(rows):
                if add:
                    out[expert].addmm_(grads[start:end].t(), inputs[start:end])
                else:
                    torch.mm(grads[start:end].t(), inputs[start:end], out=out[expert])
            return out

        return compute

    return [
        (weight1, product(weight1, grad_gate_up, x)),
        (weight2, product(weight2, grad_output, hidden)),
    ]


class _OnGpu(torch.autograd.Function):
    """The same mathematics in one grouped product per matrix; offsets stay on the device."""

    @staticmethod
    def forward(ctx, x, probs, weight1, weight2, tokens_per_expert, owed) -> Tensor:
        ends = tokens_per_expert.to(x.device).cumsum(0).to(torch.int32)
        gate_up = F.grouped_mm(x, weight1.transpose(1, 2), offs=ends)
        gate, up = _halves(gate_up)
        hidden = (F.silu(gate) * up * probs[:, None]).to(x.dtype)
        ctx.save_for_backward(x, probs, weight1, weight2, gate_up, ends)
        ctx.owed = owed
        return F.grouped_mm(hidden, weight2.transpose(1, 2), offs=ends)

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, probs, weight1, weight2, gate_up, ends = ctx.saved_tensors
        grad_output = grad_output.contiguous()
        gate, up = _halves(gate_up)
        activated = F.silu(gate)
        h = activated * up
        grad_h = F.grouped_mm(grad_output, weight2, offs=ends)
        grad_probs = (grad_h.to(probs.dtype) * h).sum(-1)
        hidden = (h * probs[:, None]).to(x.dtype)
        grad_h = (grad_h * probs[:, None]).to(x.dtype)
        grad_gate = torch.ops.aten.silu_backward(grad_h * up, gate)
        grad_gate_up = torch.cat((grad_gate, grad_h * activated), dim=-1)
        grad_x = F.grouped_mm(grad_gate_up, weight1, offs=ends)

        def product(grads: Tensor, inputs: Tensor) -> Callable:
            def compute(out: Tensor | None) -> Tensor:
                gradient = F.grouped_mm(grads.t(), inputs, offs=ends)
                return gradient if out is None else out.add_(gradient)

            return compute

        grad_weight1, grad_weight2 = ctx.owed.arrive(
            [(weight1, product(grad_gate_up, x)), (weight2, product(grad_output, hidden))]
        )
        return grad_x, grad_probs, grad_weight1, grad_weight2, None, None
