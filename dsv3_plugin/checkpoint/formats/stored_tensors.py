"""A tensor in what `torch.save` wrote: where its values lie. No torch."""

import math
from dataclasses import dataclass

from dsv3_plugin.checkpoint.formats.containers import Saved
from dsv3_plugin.checkpoint.formats.hf_headers import ITEMSIZE
from dsv3_plugin.checkpoint.formats.pickles import External, PickleError, Record, Symbol
from dsv3_plugin.checkpoint.formats.symbols import (
    DTYPES,
    REBUILD_PARAMETER,
    REBUILD_V2,
    REBUILD_V3,
    SIZE,
    STORAGES,
)


@dataclass(frozen=True, slots=True)
class StoredView:
    """Where a stored tensor's values are, and how they are strided. All of them are there."""

    position: int
    """Offset of the storage's first byte."""
    dtype: str
    """torch's name: "bfloat16"."""
    sizes: tuple[int, ...]
    stride: tuple[int, ...]
    first: int
    """Place of the first value in the storage, in values."""
    held: int
    """Values in the storage."""


def is_tensor(value: object) -> bool:
    """Whether a value of a pickle stands for a tensor."""
    return type(value) is Record and value.symbol in (REBUILD_V2, REBUILD_V3, REBUILD_PARAMETER)


def stored_tensor(record: object, saved: Saved) -> StoredView:
    """The tensor that a value of a container's pickle stands for.

    Raises:
        PickleError: it stands for none, or for one that reaches beyond its bytes.
    """
    try:
        return _stored_tensor(record, saved)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, PickleError):
            raise
        raise PickleError("not a stored tensor") from error


def _stored_tensor(record: object, saved: Saved) -> StoredView:
    if is_tensor(record) and record.symbol == REBUILD_PARAMETER:
        record = record.args[0]
    if not is_tensor(record):
        raise PickleError("not a stored tensor")
    storage, first, sizes, stride, _, _, *rest = record.args
    kind, key, numel = _storage(storage)
    dtype = rest[0] if record.symbol == REBUILD_V3 else Symbol("torch", kind)
    sizes, stride = _numbers(sizes), _numbers(stride)
    if dtype not in DTYPES or type(first) is not int or first < 0 or len(sizes) != len(stride):
        raise PickleError("not a stored tensor")
    position, nbytes = saved.storages[key]
    if numel * ITEMSIZE[kind] > nbytes:
        raise PickleError("the stored tensor is cut short")
    held = nbytes // ITEMSIZE[dtype.name]
    last = first + sum((n - 1) * step for n, step in zip(sizes, stride, strict=True))
    if math.prod(sizes) > held or (math.prod(sizes) and last >= held):
        raise PickleError("the stored tensor reaches beyond its bytes")
    return StoredView(position, dtype.name, sizes, stride, first, held)


def _storage(value: object) -> tuple[str, str, int]:
    """Type of the values, key and number of them, of a storage that a pickle refers to."""
    word, kind, key, _, numel = value.id if type(value) is External else ()
    if word != "storage" or type(kind) is not Symbol or type(numel) is not int or numel < 0:
        raise PickleError("not a storage")
    return STORAGES[kind.name], key, numel


def _numbers(value: object) -> tuple[int, ...]:
    if type(value) is Record and value.symbol == SIZE:
        (value,) = value.args
    if type(value) is tuple and all(type(n) is int and 0 <= n < 1 << 63 for n in value):
        return value
    raise PickleError("not a shape")
