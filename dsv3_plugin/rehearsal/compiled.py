"""What upstream and Transformer Engine have torch compile: on a GPU its operations are one kernel.

Run operation by operation it would make intermediates, SwiGLU's and the cross-entropy's in FP32,
that a compiled function never writes.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from dsv3_plugin.rehearsal.observe import Observer


def compiled(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Stands for `torch.compile`, as a decorator with or without arguments."""
    if function is None:
        return functools.partial(compiled, **options)
    if isinstance(function, torch.nn.Module):
        return function

    @functools.wraps(function)
    def as_one(*args: Any, **kwargs: Any) -> Any:
        for mode in reversed(_get_current_dispatch_mode_stack()):
            if isinstance(mode, Observer):
                return mode.as_one(function, args, kwargs)
        return function(*args, **kwargs)

    return as_one
