"""Upstream's all-to-all token dispatcher on CPU tensors.

`MoEAlltoAllTokenDispatcher` keeps its split sizes as tensors until it needs them on the host, and
turns them into NumPy arrays as it copies them off the GPU. On the CPU there is nothing to copy, so
they stay tensors, and `all_to_all_single` refuses them. Here the conversion happens either way.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch


def maybe_move_tensor_to_cpu(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `moe_utils.maybe_move_tensor_to_cpu`: honours `as_numpy` for CPU tensors too."""

    @functools.wraps(original)
    def onto_host(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        moved = original(tensor, as_numpy=as_numpy, record_stream=record_stream)
        return moved.numpy() if as_numpy and torch.is_tensor(moved) else moved

    return onto_host
