"""Micro-batches that are made while training goes on, for whoever reads them."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from dsv3_plugin.data.batch import Sample
from dsv3_plugin.data.datasets import Provider

_END = object()


class Feed:
    """Hands the micro-batches of each step to every reader, one for each chunk of the model."""

    def __init__(self) -> None:
        self._readers: list[deque[Sample]] = []

    def give(self, micro_batches: Sequence[Sample]) -> None:
        """Those of the next step; what a reader has left of the one before is dropped."""
        for reader in self._readers:
            reader.clear()
            reader.extend(micro_batches)

    def reader(self) -> Iterator[Sample]:
        """All that is given from now on, in its order."""
        waiting: deque[Sample] = deque()
        self._readers.append(waiting)
        return iter(waiting.popleft, _END)

    @property
    def provider(self) -> Provider:
        """In the place of datasets, with upstream's `--dataloader-type external`."""

        def provide(samples: Sequence[int | None], vp_stage: int | None = None) -> tuple[Any, ...]:
            return self.reader(), None, None

        provide.is_distributed = True  # type: ignore[attr-defined]
        return provide
