"""Attention by cuDNN (csrc/extensions/attention.cpp, common/fused_attn of TE's library).

What cuDNN's graphs need to work in is cudnn-frontend's own sum (1.32,
node/scaled_dot_product_flash_attention.h, `get_fe_workspace_size_node`).
"""

import math
from typing import Any

import torch
from torch import Tensor

from dsv3_plugin.rehearsal.te.enums import NVTE_Fused_Attn_Backend
from dsv3_plugin.rehearsal.te.kernels import Subject
from dsv3_plugin.rehearsal.te.quantized import new_tensor

_HALF = (5, 6)  # DType.kFloat16, DType.kBFloat16


class Attention(Subject):
    """Forward and backward of queries, keys and values in tensors of their own."""

    def get_fused_attn_backend(self, fused_attn_params: Any) -> tuple[Any, str]:
        """Which of cuDNN's kernels serves, and why none does.

        `nvte_get_fused_attn_backend` as far as a model's layers ask: in BF16 heads of up to 128;
        on Hopper of up to 256; on Blackwell MLA's 192 and 128, and whatever is not trained.
        """
        given = fused_attn_params
        qk, v = given.head_dim_qk, given.head_dim_v
        hopper = torch.cuda.get_device_capability()[0] == 9
        fits = (
            max(qk, v) <= 128
            or (hopper and max(qk, v) <= 256)
            or (not hopper and ((qk, v) == (192, 128) or not given.is_training))
        )
        if int(given.qkv_dtype) in _HALF and not (qk % 8 or v % 8) and fits:
            return NVTE_Fused_Attn_Backend.NVTE_F16_arbitrary_seqlen, ""
        return NVTE_Fused_Attn_Backend.NVTE_No_Backend, f"no kernel for heads of {qk} and {v}"

    def fused_attn_fwd(
        self,
        max_seqlen_q: int,
        max_seqlen_kv: int,
        is_training: bool,
        attn_scale: float,
        p_dropout: float,
        set_zero: bool,
        qkv_layout: Any,
        o_format: Any,
        qkv_scale_inv_format: Any,
        bias_type: Any,
        attn_mask_type: Any,
        softmax_type: Any,
        window_size: list[int],
        bottom_right_diagonal: bool,
        cu_seqlens_q: Tensor,
        cu_seqlens_kv: Tensor,
        Q: Any,
        K: Any,
        V: Any,
        fake_dtype: torch.dtype,
        cu_seqlens_q_padded: Tensor | None,
        cu_seqlens_kv_padded: Tensor | None,
        page_table_k: Tensor | None,
        page_table_v: Tensor | None,
        s_quantizer: Any,
        o_quantizer: Any,
        Bias: Tensor | None,
        SoftmaxOffset: Tensor | None,
        rng_gen: Any,
        rng_elts_per_thread: int,
        return_max_logit: bool,
        cuda_graph: bool,
    ) -> list[Any]:
        queries, _ = _formats(qkv_layout)
        sizes = _sizes(queries, Q.shape)
        shape = _shape(_format(o_format), sizes | {"D": V.shape[-1]})
        output = new_tensor(o_quantizer, shape, fake_dtype, Q.device)
        # One FP32 number for each row of the softmax: its maximum and the log of its sum.
        rows = ("T", "H") if "T" in sizes else ("B", "H", "S")
        of_rows = (*(sizes[axis] for axis in rows), 1)
        statistics = [
            torch.empty(of_rows, dtype=torch.float32, device=Q.device)
            for _ in range(1 + return_max_logit)
        ]
        rng_state = torch.empty(2, dtype=torch.int64, device=Q.device)
        given = [tensor for tensor in (Bias, SoftmaxOffset) if tensor is not None]
        self.launch("attention_forward", [Q, K, V, *given], [output, *statistics])
        return [output, *statistics, rng_state, *given]

    def fused_attn_bwd(
        self,
        max_seqlen_q: int,
        max_seqlen_kv: int,
        attn_scale: float,
        p_dropout: float,
        set_zero: bool,
        qkv_layout: Any,
        o_format: Any,
        do_format: Any,
        dqkv_layout: Any,
        qkv_scale_inv_format: Any,
        do_scale_inv_format: Any,
        bias_type: Any,
        attn_mask_type: Any,
        softmax_type: Any,
        window_size: list[int],
        bottom_right_diagonal: bool,
        deterministic: bool,
        cu_seqlens_q: Tensor,
        cu_seqlens_kv: Tensor,
        Q: Any,
        K: Any,
        V: Any,
        O: Any,  # noqa: E741
        dO: Any,
        fake_dtype: torch.dtype,
        Aux_CTX_Tensors: list[Tensor],
        cu_seqlens_q_padded: Tensor | None,
        cu_seqlens_kv_padded: Tensor | None,
        s_quantizer: Any,
        dp_quantizer: Any,
        dqkv_quantizer: Any,
        cuda_graph: bool,
    ) -> list[Any]:
        queries, keys = _formats(qkv_layout)
        of_queries, of_keys = _formats(dqkv_layout)
        gradients = [
            new_tensor(
                dqkv_quantizer, _shape(to, _sizes(of, tensor.shape)), fake_dtype, tensor.device
            )
            for of, to, tensor in (
                (queries, of_queries, Q), (keys, of_keys, K), (keys, of_keys, V),
            )
        ]  # fmt: skip
        sizes = _sizes(queries, Q.shape)
        rows = sizes["H"] * (sizes["T"] if "T" in sizes else sizes["B"] * sizes["S"])
        if deterministic:
            # The gradient of the probabilities, in whole tiles of 64 and 128.
            columns = math.ceil(max_seqlen_kv / 128) * 128
            accumulator = 2 * math.ceil(rows / 64) * 64 * columns
        else:
            accumulator = 4 * rows * sizes["D"]  # the gradient of the queries, in FP32
        workspace = torch.empty(4 * rows + accumulator, dtype=torch.uint8, device=Q.device)
        self.launch(
            "attention_backward", [Q, K, V, O, dO, Aux_CTX_Tensors], [*gradients, workspace]
        )
        return [*gradients, None, None]


def _formats(layout: Any) -> tuple[str, str]:
    """Order of the axes of queries, and of keys and values, as letters: B, S, H, D, or T, H, D."""
    name = layout.name.removeprefix("NVTE_")
    if any(digit in name for digit in "23") or "Paged" in name:
        raise NotImplementedError(f"a rehearsal knows no attention on tensors packed as {name}")
    first, *_, last = name.split("_")
    return first, last


def _format(order: Any) -> str:
    return order.name.removeprefix("NVTE_")


def _sizes(order: str, shape: Any) -> dict[str, int]:
    return dict(zip(order, shape, strict=True))


def _shape(order: str, sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(sizes[axis] for axis in order)
