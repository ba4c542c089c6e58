"""A chunk's micro-batches by number, whatever order a schedule asks for them in."""

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.utils import get_attr_wrapped_model


class MicroBatches:
    """Reads a step's micro-batches as they are needed.

    Args:
        iterator: gives all micro-batches of a step in order; a chunk of DualPipe computes half.
        count: how many they are.
    """

    def __init__(self, iterator: Iterator[Any] | None, count: int) -> None:
        self._iterator = iterator
        self._count = count
        self._waiting: dict[int, Any] = {}
        self._read = 0

    def take(self, micro_batch: int) -> Iterator[Any]:
        """An iterator over just this micro-batch; one that is not asked reads nothing."""
        while self._read <= micro_batch:
            self._waiting[self._read] = next(self._iterator)
            self._read += 1
        yield self._waiting.pop(micro_batch)

    def pass_over_rest(self) -> None:
        """Leave the iterator where the next step begins."""
        while self._read < self._count:
            next(self._iterator)
            self._read += 1


def reads_batches(chunk: torch.nn.Module) -> bool:
    """Whether a chunk reads the batch: it embeds, makes a loss, or predicts tokens further on."""
    return any(
        get_attr_wrapped_model(chunk, part)
        for part in ("pre_process", "post_process", "mtp_process")
    )
