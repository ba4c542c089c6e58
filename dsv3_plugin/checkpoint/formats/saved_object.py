"""What `torch.save` wrote, as real objects of the kinds that a checkpoint needs.

The other half of `pickles`: each kind that may be named (`symbols.OBJECTS`) is made here, by a call
of ours and not of the pickle's. Megatron's checkpoints have tensors, namespaces of arguments, enum
members, paths, NumPy arrays (the state of its random numbers) and Python's own data.
"""

import argparse
import importlib
import io
import pathlib
import re
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy
import torch

from dsv3_plugin.checkpoint.formats import symbols
from dsv3_plugin.checkpoint.formats.containers import Bytes, Saved, bytes_of, open_saved
from dsv3_plugin.checkpoint.formats.pickles import External, PickleError, Record, Symbol
from dsv3_plugin.checkpoint.formats.stored_tensors import is_tensor, stored_tensor
from dsv3_plugin.checkpoint.formats.torch_zip import payload_of, view_of

_DEEPEST = 100
_MOST = 1 << 20
"""Values in one object. One that refers to itself over and over has no end, or next to none."""


def load_saved(data: Bytes, where: object) -> Any:
    """What `torch.save` wrote into `data`. Tensors are views of it where it can be written to.

    Args:
        data: a whole container.
        where: how a person knows it.

    Raises:
        ForeignSymbolError: it names what could run code.
        PickleError: it is damaged, or none.
    """
    saved = open_saved(data)
    content = saved.content(symbols.OBJECTS, where)
    try:
        return _Objects(saved, data).make(content)
    except TypeError as error:  # what was made of a key is none
        raise PickleError("it has a key that is none") from error


class _Objects:
    """Makes the objects of one container."""

    def __init__(self, saved: Saved, data: Bytes) -> None:
        self._saved, self._data = saved, data
        self._left = _MOST

    def make(self, value: Any, depth: int = _DEEPEST) -> Any:
        """The object that a value of the pickle stands for."""
        self._left -= 1
        if depth == 0 or self._left < 0:
            raise PickleError("it is nested too deep, or without end")
        kind = type(value)
        if kind in (list, tuple, set, frozenset):
            return kind(self.make(item, depth - 1) for item in value)
        if kind is dict:
            return self._items(value, depth)
        if kind is Symbol:
            if value not in symbols.DTYPES:
                raise PickleError(f"{value} stands where a value belongs")
            return getattr(torch, value.name)
        if kind is External:
            raise PickleError("a storage stands where a value belongs")
        return self._made(value, depth - 1) if kind is Record else value

    def _items(self, items: dict, depth: int) -> dict:
        return {self.make(k, depth - 1): self.make(v, depth - 1) for k, v in items.items()}

    def _made(self, record: Record, depth: int) -> Any:
        if is_tensor(record):
            return self._tensor(record)
        symbol = record.symbol
        try:
            if symbol == symbols.GETATTR:  # how Python 3.11 saves the member of an enum
                owner, name = record.args
                return _enum(owner)[self.make(name, depth)]
            if symbol in symbols.NEW_ARRAY:
                return _array(record)
            if symbol in symbols.ARRAY_SCALAR:
                dtype, raw = record.args
                return numpy.frombuffer(bytes_of(raw), _array_dtype(dtype))[0]
            args = self.make(record.args, depth)
            if symbol in symbols.ENUMS:
                return _enum(symbol)(*args)
            if symbol in symbols.NAMESPACES:
                return _namespace(symbol, self.make(record.state or {}, depth))
            if symbol == symbols.ORDERED_DICT:
                return OrderedDict(*args) | self._items(record.items or {}, depth)
            if symbol == symbols.BYTES_IO:
                return io.BytesIO(bytes_of(record.state[0]) if record.state else b"")
            if symbol == symbols.GENERATOR:
                generator = torch.Generator(*args)
                generator.__setstate__(self.make(record.state, depth))
                return generator
            return _CALLS[symbol](*args)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            if isinstance(error, PickleError):
                raise
            raise PickleError(f"it makes no {symbol} that is known here") from error

    def _tensor(self, record: Record) -> torch.Tensor:
        return view_of(payload_of(stored_tensor(record, self._saved)), self._data)


def _enum(symbol: Any) -> Any:
    if symbol not in symbols.ENUMS:
        raise PickleError("it is no member of an enum that is known here")
    return getattr(importlib.import_module(symbol.module), symbol.name)


def _namespace(symbol: Symbol, state: dict[str, Any]) -> argparse.Namespace | SimpleNamespace:
    if not all(type(name) is str and not name.startswith("__") for name in state):
        raise PickleError("an attribute has no name")
    made = argparse.Namespace() if symbol.module == "argparse" else SimpleNamespace()
    vars(made).update(state)
    return made


def _array(record: Record) -> numpy.ndarray:
    """Of numbers; NumPy's own reader of its state trusts it."""
    _, shape, dtype, by_columns, raw = record.state
    array = numpy.frombuffer(bytes_of(raw), _array_dtype(dtype))
    return array.reshape(shape, order="F" if by_columns else "C").copy()


def _array_dtype(record: Record) -> numpy.dtype:
    name, order = record.args[0], record.state[1]
    if record.symbol != symbols.ARRAY_DTYPE or not re.fullmatch("[biufc][1-9][0-9]?", name):
        raise PickleError("an array is not of numbers")
    return numpy.dtype(name).newbyteorder(order)


def _bytes(value: Any = b"", encoding: str | None = None) -> bytes:
    """Never of a number: that would be so many zeros."""
    return bytes_of(Record(symbols.ENCODE, (value, encoding)) if encoding else value)


_PYTHON: dict[str, Callable[..., Any]] = {
    "set": set,
    "frozenset": frozenset,
    "bytearray": lambda *args: bytearray(_bytes(*args)),
    "bytes": _bytes,
    "complex": complex,
}
_CALLS: dict[Symbol, Callable[..., Any]] = {
    **{symbol: _PYTHON[symbol.name] for symbol in symbols.BUILTINS},
    **{symbol: getattr(pathlib, symbol.name) for symbol in symbols.PATHS},
    symbols.SIZE: torch.Size,
    symbols.DEVICE: torch.device,
    symbols.ENCODE: _bytes,
}
