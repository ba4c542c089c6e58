"""Matrix products (csrc/extensions/gemm.cpp)."""

import math
from typing import Any

import torch
from torch import Tensor

from dsv3_plugin.rehearsal.te.kernels import Subject
from dsv3_plugin.rehearsal.te.quantized import Quantization, new_tensor, torch_type


def _rows_and_columns(shape: torch.Size) -> tuple[int, int]:
    return math.prod(shape[:-1]), shape[-1]


def _product_shape(A: Any, transA: bool, B: Any, transB: bool) -> tuple[int, ...]:
    """Of B · A with row-major operands, in cuBLAS's transposed reading (`getGemmOutputShape`)."""
    rows, columns = _rows_and_columns(A.shape)
    inner_a, outer_a = (columns, rows) if transA else (rows, columns)
    b_rows, b_columns = _rows_and_columns(B.shape)
    inner_b, outer_b = (b_rows, (b_columns,)) if transB else (b_columns, tuple(B.shape[:-1]))
    if inner_a != inner_b:
        raise ValueError(
            f"TE was asked for a product of {tuple(A.shape)}{'ᵀ' * transA} and "
            f"{tuple(B.shape)}{'ᵀ' * transB}"
        )
    return (*outer_b, outer_a)


def _operands(A: Any, transA: bool, B: Any, transB: bool) -> list[Any]:
    """What a product reads of its operands: a quantised one is kept in one order, or in both."""
    return [*_in_order(A, rowwise=transA), *_in_order(B, rowwise=not transB)]


def _in_order(tensor: Any, *, rowwise: bool) -> list[Any]:
    if not hasattr(tensor, "_INNER_TENSORS"):
        return [tensor]
    names = [name for name, _ in tensor._INNER_TENSORS if getattr(tensor, name) is not None]
    other = ("_columnwise", "_transpose") if rowwise else ("_rowwise", "_data")
    read = [name for name in names if not name.startswith(other)]
    if all("scale" in name for name in read):
        read = names  # per-tensor scaling on Blackwell: the one order is read either way
    return [getattr(tensor, name) for name in read]


def _value_type(tensor: Any) -> torch.dtype:
    """A quantised storage is no tensor, and knows the type that it stands for."""
    return tensor.dtype if isinstance(tensor, Tensor) else tensor._dtype


class Products(Subject):
    """One product, and as many as there are experts."""

    def generic_gemm(
        self,
        A: Any,
        transA: bool,
        B: Any,
        transB: bool,
        D: Any,
        quantizer: Any,
        output_dtype: Any,
        bias: Tensor | None,
        bias_type: Any,
        gelu: bool,
        gelu_in: Tensor | None,
        grad: bool,
        workspace: Tensor,
        workspace_size: int,
        accumulate: bool,
        use_split_accumulator: bool,
        comm_overlap: Any = None,
        comm_type: Any = None,
        extra_output: Tensor | None = None,
        bulk_overlap: bool = False,
        alpha: float = 1.0,
        beta: float | None = None,
    ) -> list[Any]:
        if comm_overlap is not None:
            raise NotImplementedError("a rehearsal has no userbuffers (tp_comm_overlap)")
        shape = _product_shape(A, transA, B, transB)
        device = workspace.device
        dtype = _value_type(A) if output_dtype is None else torch_type(output_dtype)
        if D is None:
            D = new_tensor(quantizer, shape, dtype, device)
        elif tuple(D.shape) != shape:
            raise ValueError(f"TE was asked to put a product of {shape} into {tuple(D.shape)}")
        # Only delayed scaling is fused into the product; what else is quantised goes through BF16.
        fused = quantizer is None or type(quantizer).__name__ == "Float8Quantizer"
        out = D if fused else new_tensor(None, shape, dtype, device)
        bias_gradient = pre_gelu = None
        if bias is not None and grad:
            bias_gradient = torch.empty(B.shape[-1], dtype=dtype, device=device)
        if gelu and not grad:
            pre_gelu = torch.empty(shape, dtype=torch_type(bias_type), device=device)
        reads = [*_operands(A, transA, B, transB), gelu_in, None if grad else bias]
        self.launch("gemm", [*reads, out if accumulate else None], [out, bias_gradient, pre_gelu])
        if out is not D:
            Quantization(self.on_kernel).cast(quantizer, out, D)
        return [D, bias_gradient, pre_gelu, extra_output]

    def te_general_grouped_gemm(
        self,
        A: list[Any],
        transA: bool,
        B: list[Any],
        transB: bool,
        D: list[Tensor] | None,
        D_type: Any,
        m_splits: list[int],
        bias: list[Tensor],
        bias_type: Any,
        single_output: bool,
        pre_gelu_out: list[Tensor],
        grad: bool,
        workspace: list[Tensor],
        workspace_size: int,
        accumulate: bool,
        use_split_accumulator: bool,
        math_sm_count: int,
    ) -> list[Tensor]:
        # On several streams, one product for each expert that has rows.
        for index, (a, b) in enumerate(zip(A, B, strict=True)):
            shape = _product_shape(a, transA, b, transB)
            if D is None:
                out = torch.empty(shape, dtype=torch_type(D_type), device=workspace[0].device)
            elif single_output:
                first = sum(m_splits[:index])
                out = D[0].view(-1, shape[-1])[first : first + m_splits[index]]
            else:
                out = D[index]
            if math.prod(a.shape) and math.prod(b.shape):
                reads = [*_operands(a, transA, b, transB), out if accumulate else None]
                self.launch("grouped_gemm", reads, out)
            elif not accumulate:
                self.launch("zero", (), out)
        return bias
