"""What the optimizer and the distribution of FP8 parameters reach (csrc/extensions/multi_tensor,
recipe.cpp, fp8_partial_cast.cpp)."""

from typing import Any

import torch
from torch import Tensor

from dsv3_plugin.rehearsal.te.kernels import Subject

_PARTIAL_NORMS = 320
"""Sums of blocks that a norm of many tensors is gathered from."""


class Optimizer(Subject):
    """Kernels over many tensors at once; each works in place."""

    def multi_tensor_scale(
        self, chunk_size: int, noop_flag: Tensor, tensor_lists: list, scale: float
    ) -> None:
        self.launch("scale", tensor_lists[0], tensor_lists[1])

    def multi_tensor_scale_tensor(
        self, chunk_size: int, is_infinite: Tensor, tensor_lists: list, scale: Tensor
    ) -> None:
        self.launch("scale", [tensor_lists[0], scale], tensor_lists[1])

    def multi_tensor_l2norm(
        self, chunk_size: int, noop_flag: Tensor, tensor_lists: list, per_tensor: bool | None
    ) -> tuple[Tensor, Tensor]:
        device = tensor_lists[0][0].device
        sums = torch.zeros(_PARTIAL_NORMS, dtype=torch.float32, device=device)
        count = len(tensor_lists[0]) if per_tensor else 0
        norm = torch.empty(1, dtype=torch.float32, device=device)
        of_each = torch.empty(count, dtype=torch.float32, device=device)
        self.launch("norm", tensor_lists, [sums, norm, of_each])
        return norm, of_each

    def multi_tensor_unscale_l2norm(
        self,
        chunk_size: int,
        noop_flag: Tensor,
        tensor_lists: list,
        inv_scale: Tensor,
        per_tensor: bool | None,
    ) -> tuple[Tensor, Tensor]:
        return self.multi_tensor_l2norm(chunk_size, noop_flag, tensor_lists, per_tensor)

    def multi_tensor_adam(
        self,
        chunk_size: int,
        noop_flag: Tensor,
        tensor_lists: list,
        lr: float,
        beta1: float,
        beta2: float,
        epsilon: float,
        step: int,
        mode: int,
        bias_correction: int,
        weight_decay: float,
    ) -> None:
        self._adam(tensor_lists)

    def multi_tensor_adam_param_remainder(
        self,
        chunk_size: int,
        noop_flag: Tensor,
        tensor_lists: list,
        lr: float,
        beta1: float,
        beta2: float,
        epsilon: float,
        step: int,
        mode: int,
        bias_correction: int,
        weight_decay: float,
    ) -> None:
        self._adam(tensor_lists)

    def multi_tensor_adam_fp8(
        self,
        chunk_size: int,
        noop_flag: Tensor,
        tensor_lists: list,
        lr: float,
        beta1: float,
        beta2: float,
        epsilon: float,
        step: int,
        mode: int,
        bias_correction: int,
        weight_decay: float,
        fp8_dtype: Any,
    ) -> None:
        self._adam(tensor_lists)

    def _adam(self, tensor_lists: list) -> None:
        # Gradients are read; parameters, moments and what else is listed are read and written.
        self.launch("adam", tensor_lists, tensor_lists[1:])

    def multi_tensor_compute_scale_and_scale_inv(
        self,
        chunk_size: int,
        noop_flag: Tensor,
        tensor_lists: list,
        max_fp8: float,
        force_pow_2_scales: bool,
        epsilon: float,
    ) -> None:
        self.launch("scales_from_amax", tensor_lists[0], tensor_lists[1:])

    def compute_amax(self, input: Tensor, amax: Tensor) -> None:
        self.launch("amax", input.contiguous(), amax)

    def fused_amax_and_scale_update_after_reduction(
        self,
        amax_reduction_buffer: Tensor,
        amax_histories: list[Tensor],
        scales: list[Tensor],
        amax_compute_algo: str,
        fp8_dtype: Any,
        margin: float,
    ) -> None:
        reads = [amax_reduction_buffer, amax_histories]
        self.launch("scales_from_history", reads, [amax_histories, scales])

    def fp8_block_scaling_compute_partial_amax(
        self, tensor: Tensor, amax: Tensor, h: int, w: int, start_offset: int, block_len: int
    ) -> None:
        self.launch("partial_amax", tensor, amax)

    def fp8_block_scaling_partial_cast(
        self,
        inp: Tensor,
        out: Tensor,
        scale: Tensor,
        h: int,
        w: int,
        start_offset: int,
        block_len: int,
        out_dtype: Any,
    ) -> None:
        self.launch("partial_cast", [inp, scale], out)

    def mxfp8_scaling_compute_partial_amax(
        self,
        input: Tensor,
        amax_rowwise: Tensor,
        amax_colwise: Tensor,
        rows: int,
        cols: int,
        start_offset: int,
    ) -> None:
        self.launch("partial_amax", input, [amax_rowwise, amax_colwise])

    def mxfp8_scaling_partial_cast(
        self,
        input: Tensor,
        output_rowwise: Tensor,
        output_colwise: Tensor,
        scale_inv_rowwise: Tensor,
        scale_inv_colwise: Tensor,
        rows: int,
        cols: int,
        start_offset: int,
    ) -> None:
        reads = [input, scale_inv_rowwise, scale_inv_colwise]
        self.launch("partial_cast", reads, [output_rowwise, output_colwise])
