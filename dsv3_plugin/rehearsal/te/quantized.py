"""Quantised tensors: made, filled, turned back.

What a quantised tensor consists of TE's quantizers say themselves (`inner_tensor_specs`, which its
own fake operators use); its C++ (csrc/quantizer.cpp, extensions/{cast,bias,transpose}.cpp)
allocates the same.
"""

from typing import Any

import torch
from torch import Tensor

from dsv3_plugin.rehearsal.te.kernels import Subject

TORCH_TYPES = {
    0: torch.uint8,
    2: torch.int32,
    4: torch.float32,
    5: torch.float16,
    6: torch.bfloat16,
    7: torch.float8_e4m3fn,
    8: torch.float8_e5m2,
}
"""By the value of TE's DType."""


def torch_type(dtype: Any) -> torch.dtype:
    """Of TE's DType, or itself."""
    return dtype if isinstance(dtype, torch.dtype) else TORCH_TYPES[int(dtype)]


def new_tensor(
    quantizer: Any, shape: Any, dtype: torch.dtype, device: Any, pin_memory: bool = False
) -> Any:
    """What `create_tensor` of csrc/quantizer.cpp makes; plain where there is no quantizer."""
    shape = tuple(shape)
    if quantizer is None:
        return torch.empty(shape, dtype=dtype, device=device, pin_memory=pin_memory)
    inner = {
        name: torch.empty(size, dtype=kind, device=device, pin_memory=pin_memory)
        for name, (size, kind) in inner_tensors(quantizer, shape).items()
    }
    return assembled(quantizer, shape, dtype, inner, internal=quantizer.internal)


def inner_tensors(
    quantizer: Any, shape: tuple[int, ...]
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Attribute → shape and type of each tensor that a quantised one consists of."""
    return _describing(quantizer).inner_tensor_specs(quantizer, shape)


def assembled(
    quantizer: Any,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    inner: dict[str, Tensor],
    *,
    internal: bool,
) -> Any:
    """The quantised tensor of these parts, or, for TE's own use, its bare storage."""
    described = _describing(quantizer).storage_metadata(quantizer, dtype)
    kind = described["cls"]
    if internal:
        kind = next(
            base
            for base in kind.__mro__
            if "_INNER_TENSORS" in vars(base) and not issubclass(base, Tensor)
        )
    context = {
        "cls": kind,
        "is_tensor": not internal,
        "requires_grad": False,
        "nontensor_kwargs": described["nontensor_kwargs"],
    }
    strides = torch._prims_common.make_contiguous_strides_for(shape)
    return kind.__tensor_unflatten__(inner, context, shape, strides)


def _describing(quantizer: Any) -> Any:
    """The class that says what its tensors consist of.

    Delayed scaling has no description: the same tensors as current scaling, which differs in where
    the scale is from.
    """
    from transformer_engine.pytorch.tensor import Float8CurrentScalingQuantizer, Float8Quantizer

    kind = type(quantizer)
    return Float8CurrentScalingQuantizer if kind is Float8Quantizer else kind


def as_wanted(quantizer: Any, output: Any) -> None:
    """Bring a tensor that is written anew to what its quantizer is set to.

    `convert_and_update_tensor` of csrc/quantizer.cpp: what is wanted and absent is made, what is
    there and not wanted goes. Per-tensor scales stay.
    """
    wanted = inner_tensors(quantizer, tuple(output.shape))
    for name, _ in output._INNER_TENSORS:
        if name not in wanted:
            setattr(output, name, None)
        elif getattr(output, name) is None:
            size, kind = wanted[name]
            setattr(output, name, torch.empty(size, dtype=kind, device=output.device))
    if hasattr(output, "_transpose_invalid"):
        output._transpose_invalid = output._transpose is None


class Quantization(Subject):
    """Casts."""

    def quantize(
        self, tensor: Tensor, quantizer: Any, output: Any = None, noop: Tensor | None = None
    ) -> Any:
        tensor = tensor.contiguous()
        if output is None:
            output = new_tensor(quantizer, tensor.shape, tensor.dtype, tensor.device)
        else:
            as_wanted(quantizer, output)
        self.cast(quantizer, tensor, output)
        return output

    def cast(self, quantizer: Any, tensor: Tensor, output: Any) -> None:
        """The kernels of `Quantizer::quantize`: current scaling looks for the maximum first."""
        if tensor.numel() == 0:
            return
        if type(quantizer).__name__ == "Float8CurrentScalingQuantizer":
            scales = torch.empty(2, dtype=torch.float32, device=tensor.device)
            self.launch("amax", tensor, scales)
            self.launch("scale_from_amax", scales, scales)
        self.launch("quantize", tensor, output)
        if quantizer.optimize_for_gemm and not getattr(output, "_with_gemm_swizzled_scales", True):
            output._with_gemm_swizzled_scales = True
            self.launch("swizzle_scales", (), ())

    def dequantize(self, input: Any, otype: Any) -> Tensor:
        output = torch.empty(tuple(input.shape), dtype=torch_type(otype), device=input.device)
        self.launch("dequantize", input, output)
        return output

    def create_empty_quantized_tensor(
        self, quantizer: Any, shape: Any, dtype: torch.dtype, device: Any, pin_memory: bool
    ) -> Any:
        return new_tensor(quantizer, shape, dtype, device, pin_memory)

    def bgrad_quantize(self, input: Tensor, quantizer: Any) -> list[Any]:
        input = input.contiguous()
        bias = torch.empty(input.shape[-1], dtype=input.dtype, device=input.device)
        self.launch("bias_gradient", input, bias)
        if quantizer is None:
            return [bias, input]
        return [bias, self.quantize(input, quantizer)]

    def fp8_transpose(self, input: Tensor, dtype: Any, *, out: Tensor | None) -> Tensor:
        input = input.contiguous()
        if out is None:
            shape = (input.shape[-1], *input.shape[:-1])
            out = torch.empty(shape, dtype=torch.uint8, device=input.device)
        self.launch("transpose", input, out)
        return out

    def swap_first_dims(self, tensor: Tensor, *, out: Tensor | None) -> Tensor:
        tensor = tensor.contiguous()
        if out is None:
            shape = (tensor.shape[1], tensor.shape[0], *tensor.shape[2:])
            out = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
        self.launch("swap_first_dims", tensor, out)
        return out

    def multi_tensor_quantize(self, tensor_list: list[Tensor], quantizer_list: list) -> list[Any]:
        return [
            self.quantize(tensor, quantizer)
            for tensor, quantizer in zip(tensor_list, quantizer_list, strict=True)
        ]
