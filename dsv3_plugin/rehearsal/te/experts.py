"""What routed experts take beside products: scores, activations, padding, casts of many tensors.

csrc/extensions/{router,activation,padding,cast}.cpp. The permutation itself is Triton's
(`triton_launches.py`).
"""

import math
from typing import Any

import torch
from torch import Tensor

from dsv3_plugin.rehearsal.te.enums import NVTERoutingMapFormat
from dsv3_plugin.rehearsal.te.kernels import Subject
from dsv3_plugin.rehearsal.te.quantized import (
    Quantization,
    assembled,
    inner_tensors,
    new_tensor,
)

_DATA_ALIGNMENT, _SCALE_ALIGNMENT = 256, 16
_BULK = ("Float8BlockQuantizer", "MXFP8Quantizer")
"""Whose tensors are made in one buffer for all experts."""


class Experts(Subject):
    """Router, SwiGLU, rows padded for FP8, and the rows of each expert quantised."""

    def fused_topk_with_score_function_fwd(
        self,
        logits: Tensor,
        topk: int,
        use_pre_softmax: bool,
        num_groups: int | None,
        group_topk: int | None,
        scaling_factor: float | None,
        score_function: str,
        expert_bias: Tensor | None,
        routing_map_format: int = 0,
        topk_indices: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        probs = torch.empty_like(logits)
        if topk_indices is None:
            topk_indices = _routing_map(logits, routing_map_format)
        scores = torch.empty_like(logits, dtype=torch.float32)
        written = (probs, topk_indices, scores)
        self.launch("router_forward", [logits, expert_bias], written)
        return written

    def fused_topk_with_score_function_bwd(
        self,
        routing_map: Tensor,
        intermediate_output: Tensor,
        grad_probs: Tensor,
        grad_logits: Tensor,
        topk: int,
        use_pre_softmax: bool,
        scaling_factor: float | None,
        score_function: str,
        use_dense_indices: bool = False,
        routing_map_format: int = 0,
    ) -> None:
        reads = [routing_map, intermediate_output, grad_probs]
        self.launch("router_backward", reads, grad_logits)

    def fused_score_for_moe_aux_loss_fwd(
        self, logits: Tensor, topk: int, score_function: str, routing_map_format: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        scores = torch.empty_like(logits, dtype=torch.float32)
        routing_map = _routing_map(logits, routing_map_format)
        kept = torch.empty_like(logits, dtype=torch.float32)
        self.launch("balance_scores_forward", logits, [scores, routing_map, kept])
        return scores, routing_map, kept

    def fused_score_for_moe_aux_loss_bwd(
        self,
        intermediate_output: Tensor,
        grad_scores: Tensor,
        grad_logits: Tensor,
        topk: int,
        score_function: str,
    ) -> None:
        self.launch("balance_scores_backward", [intermediate_output, grad_scores], grad_logits)

    def fused_moe_aux_loss_fwd(
        self,
        probs: Tensor,
        tokens_per_expert: Tensor,
        total_num_tokens: int,
        num_experts: int,
        num_rows: int,
        num_cols: int,
        topk: int,
        coeff: float,
    ) -> tuple[Tensor, Tensor]:
        loss = probs.new_empty(())
        kept = torch.empty(2, dtype=torch.float32, device=probs.device)
        self.launch("balance_loss_forward", [probs, tokens_per_expert], [loss, kept])
        return loss, kept

    def fused_moe_aux_loss_fwd_graph_safe(
        self,
        probs: Tensor,
        tokens_per_expert: Tensor,
        total_num_tokens: Tensor,
        num_experts: int,
        num_rows: int,
        num_cols: int,
        topk: int,
        coeff: float,
    ) -> tuple[Tensor, Tensor]:
        return self.fused_moe_aux_loss_fwd(
            probs, tokens_per_expert, 0, num_experts, num_rows, num_cols, topk, coeff
        )

    def fused_moe_aux_loss_bwd(
        self,
        Const_buf: Tensor,
        tokens_per_expert: Tensor,
        num_rows: int,
        num_cols: int,
        grad_aux_loss: Tensor,
    ) -> Tensor:
        gradient = grad_aux_loss.new_empty((num_rows, num_cols))
        self.launch(
            "balance_loss_backward", [Const_buf, tokens_per_expert, grad_aux_loss], gradient
        )
        return gradient

    def silu(self, input: Tensor, quantizer: Any) -> Any:
        return self._activated("silu", [input], input.shape, quantizer)

    def dsilu(self, grad: Tensor, fwd_input: Tensor, quantizer: Any) -> Any:
        return self._activated("dsilu", [fwd_input, grad], fwd_input.shape, quantizer)

    def swiglu(self, input: Tensor, quantizer: Any) -> Any:
        shape = (*input.shape[:-1], input.shape[-1] // 2)
        return self._activated("swiglu", [input], shape, quantizer)

    def dswiglu(self, grad: Tensor, fwd_input: Tensor, quantizer: Any) -> Any:
        return self._activated("dswiglu", [fwd_input, grad], fwd_input.shape, quantizer)

    def _activated(self, name: str, given: list[Tensor], shape: Any, quantizer: Any) -> Any:
        given = [tensor.contiguous() for tensor in given]
        dtype, device = given[0].dtype, given[0].device
        output = new_tensor(quantizer, shape, dtype, device)
        fused = quantizer is None or type(quantizer).__name__ in (
            "Float8Quantizer", "MXFP8Quantizer",
        )  # fmt: skip
        written = output if fused else torch.empty(tuple(shape), dtype=dtype, device=device)
        self.launch(name, given, written)
        if not fused:
            Quantization(self.on_kernel).cast(quantizer, written, output)
        return output

    def fused_multi_row_padding(
        self, input: Tensor, output: Tensor, input_row_list: list, padded_input_row_list: list
    ) -> None:
        self.launch("pad_rows", input, output)

    def fused_multi_row_unpadding(
        self, input: Tensor, output: Tensor, input_row_list: list, unpadded_input_row_list: list
    ) -> None:
        self.launch("unpad_rows", output, output)  # it reads as many rows as it writes

    def split_quantize(
        self,
        tensor: Tensor,
        split_sections: list[int],
        quantizer_list: list[Any],
        disable_bulk_allocation: bool = False,
    ) -> list[Any]:
        if not split_sections:
            return []
        tensor = tensor.contiguous()
        kinds = {type(quantizer).__name__ for quantizer in quantizer_list}
        bulk = not disable_bulk_allocation and len(kinds) == 1 and kinds <= set(_BULK)
        if bulk:
            shapes = [(rows, *tensor.shape[1:]) for rows in split_sections]
            outputs = _in_one_buffer(shapes, quantizer_list, tensor)
        else:
            outputs = [
                new_tensor(quantizer, (rows, *tensor.shape[1:]), tensor.dtype, tensor.device)
                for rows, quantizer in zip(split_sections, quantizer_list, strict=True)
            ]
        # One kernel for each expert; only delayed scaling has one for all.
        if kinds == {"Float8Quantizer"}:
            self.launch("quantize_all", tensor, outputs)
            return outputs
        casts = Quantization(self.on_kernel)
        parts = tensor[: sum(split_sections)].split(list(split_sections))
        for quantizer, part, output in zip(quantizer_list, parts, outputs, strict=True):
            casts.cast(quantizer, part, output)
        return outputs


def _routing_map(logits: Tensor, routing_map_format: int) -> Tensor:
    if routing_map_format == NVTERoutingMapFormat.BITMAP_U8:
        shape = (*logits.shape[:-1], math.ceil(logits.shape[-1] / 8))
        return torch.empty(shape, dtype=torch.uint8, device=logits.device)
    return torch.empty_like(logits, dtype=torch.bool)


def _in_one_buffer(shapes: list[Any], quantizers: list[Any], like: Tensor) -> list[Any]:
    """Quantised storages of all experts, cut out of one buffer for each of the two orders.

    `bulk_allocate_fp8_blockwise_tensors`: a buffer lives until the last expert's part goes.
    """
    specs = [
        inner_tensors(quantizer, shape) for shape, quantizer in zip(shapes, quantizers, strict=True)
    ]
    made: list[dict[str, Tensor]] = [{} for _ in shapes]
    for order in ("_rowwise", "_columnwise"):
        names = [name for name in specs[0] if name.startswith(order)]
        for name, tensors in _cut(names, specs, like.device).items():
            for inner, tensor in zip(made, tensors, strict=True):
                inner[name] = tensor
    return [
        assembled(quantizer, shape, like.dtype, inner, internal=True)
        for shape, quantizer, inner in zip(shapes, quantizers, made, strict=True)
    ]


def _cut(names: list[str], specs: list[dict], device: torch.device) -> dict[str, list[Tensor]]:
    """First the values of all experts, then their scales, aligned as TE aligns them."""
    places, end = [], 0
    for name in names:
        alignment = _SCALE_ALIGNMENT if name.endswith("scale_inv") else _DATA_ALIGNMENT
        for spec in specs:
            shape, kind = spec[name]
            first = math.ceil(end / alignment) * alignment
            end = first + math.prod(shape) * kind.itemsize
            places.append((name, first, end, shape, kind))
    if not places:
        return {}
    buffer = torch.empty(end + _DATA_ALIGNMENT, dtype=torch.uint8, device=device)
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    for name, first, last, shape, kind in places:
        parts[name].append(buffer[first:last].view(kind).view(tuple(shape)))
    return parts
