"""Sums of FP32 on a CPU, rounded once: the same whatever order they are taken in.

A sum in FP32 depends on its order, and the order on how many rows there are, on what lies beside
them and on how many threads take part. An engine and a trainer that compute the same model by the
same modules so come to log-probabilities that differ by some 1e-6, and by more than 1e-5 where a
model is sure of itself. Where sums are made in FP64 and their results rounded to FP32, both round
the same value, but for one in some 10⁸ that lies that near to the middle between two numbers.

Meant for reinforcement learning, which compares the two. Below autograd: a forward within the block
keeps what it would have kept, and its backward computes as ever.
"""

import contextlib
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

_aten = torch.ops.aten

_SUMS = frozenset(
    overload
    for operation in (
        _aten.linear, _aten.matmul, _aten.mm, _aten.bmm, _aten.addmm, _aten.baddbmm,
        _aten._grouped_mm, _aten._softmax, _aten.softmax, _aten._log_softmax,
        _aten.log_softmax,
        _aten.linalg_vector_norm, _aten.sum, _aten.mean, _aten.embedding_bag, _aten._embedding_bag,
        _aten._embedding_bag_forward_only, _aten.index_add, _aten.index_add_, _aten.scatter_add,
        _aten.scatter_add_, _aten.scaled_dot_product_attention,
        _aten._scaled_dot_product_flash_attention_for_cpu,
        # Of one number each, but rounded otherwise at the end of a tensor, where vectors do not
        # reach, than before it.
        _aten.sigmoid, _aten.silu, _aten.cos, _aten.sin,
    )
    for overload in (getattr(operation, name) for name in operation.overloads())
)  # fmt: skip


class _RoundedOnce(TorchDispatchMode):
    """Computes FP32 sums in FP64."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _SUMS:
            return func(*args, **kwargs)
        dtypes = {each.dtype for each in (*args, *kwargs.values()) if isinstance(each, Tensor)}
        if torch.float32 not in dtypes or torch.float64 in dtypes:
            return func(*args, **kwargs)
        wide = [_widened(each) for each in args]
        named = {name: _widened(each) for name, each in kwargs.items()}
        if func is _aten._grouped_mm.default:  # there is none in FP64
            return _grouped(*wide, **named).float()
        made = func(*wide, **named)
        if func._schema.is_mutable:
            return (kwargs["out"] if "out" in kwargs else args[0]).copy_(made)
        if isinstance(made, Tensor):
            return _rounded(made)
        return tuple(_rounded(each) if isinstance(each, Tensor) else each for each in made)


def rounded_once(
    config: TransformerConfig, device: torch.device
) -> contextlib.AbstractContextManager[Any]:
    """What a model's forwards are computed in, so that engine and trainer come to the same.

    Args:
        config: of the model.
        device: where it lies; elsewhere than on a CPU, or in another type than FP32, nothing is
            changed.
    """
    if device.type == "cpu" and config.params_dtype == torch.float32:
        return _RoundedOnce()
    return contextlib.nullcontext()


def here() -> bool:
    """Whether what is computed is rounded once."""
    return isinstance(_get_current_dispatch_mode(), _RoundedOnce)


def _widened(given: Any) -> Any:
    """An operation's argument: a tensor, the type of a result, or something else."""
    if isinstance(given, Tensor):
        return given.double() if given.dtype == torch.float32 else given
    return torch.float64 if given is torch.float32 else given


def _rounded(made: Tensor) -> Tensor:
    return made.float() if made.dtype == torch.float64 else made


def _grouped(rows: Tensor, weights: Tensor, offs: Tensor) -> Tensor:
    """Rows [t, in] of each group by its matrix of weights [groups, in, out]."""
    sizes = offs.diff(prepend=offs.new_zeros(1)).tolist()
    each = zip(rows.split(sizes), weights, strict=True)
    return torch.cat([torch.mm(of_group, weight) for of_group, weight in each])
