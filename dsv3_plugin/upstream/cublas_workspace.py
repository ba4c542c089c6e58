"""Transformer Engine's workspace for matrix products, one for each CUDA stream that computes.

TE makes one per device and hands it to every product. A product on another stream writes it at the
same time, and both results are wrong without a word. Which one a product gets is decided here by
the stream it is launched on; torch's own products do the same.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch


def get_cublas_workspace(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `transformer_engine.pytorch.cpp_extensions.gemm.get_cublas_workspace`."""
    make = original.__wrapped__  # without TE's memory of devices

    @functools.cache
    def made(stream: int, device: int, ub: bool, grouped_gemm: bool) -> Any:
        return make(device, ub, grouped_gemm)

    @functools.wraps(make)
    def of_stream(device: int, ub: bool, grouped_gemm: bool) -> Any:
        return made(torch.cuda.current_stream(device).cuda_stream, device, ub, grouped_gemm)

    return of_stream
