"""What a kernel of Transformer Engine reads and writes.

A library's function that launches kernels says so here; whoever rehearses counts them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Kernel:
    """One launch.

    Attributes:
        name: of the kernel, or of the function of TE's library that it is the whole of.
        reads: dense tensors; of a quantised one its values and its scales.
        writes: likewise.
    """

    name: str
    reads: tuple[Tensor, ...]
    writes: tuple[Tensor, ...]


OnKernel = Callable[[Kernel], None]


@dataclass(frozen=True)
class Subject:
    """Functions of TE's library on one subject: every public method is one, under its own name."""

    on_kernel: OnKernel

    def launch(self, name: str, reads: Any, writes: Any) -> None:
        """Say that a kernel runs now."""
        self.on_kernel(Kernel(name, (*dense(reads),), (*dense(writes),)))


def dense(value: Any) -> Iterator[Tensor]:
    """The dense tensors that values consist of, through lists and quantised tensors."""
    if isinstance(value, list | tuple):
        for one in value:
            yield from dense(one)
    elif hasattr(value, "_INNER_TENSORS"):
        for attribute, _ in value._INNER_TENSORS:
            yield from dense(getattr(value, attribute))
    elif isinstance(value, Tensor):
        yield value
