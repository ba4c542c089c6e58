"""Sequences of whole conversations that do not see each other.

Each conversation keeps the places that it would have alone: positions begin anew, its last token
predicts nothing, and what a sequence has left is padding. Labels are the tokens that follow, one
place further, of which the loss counts those that the assistant has said.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split

from dsv3_plugin.data.chat.epochs import Epochs
from dsv3_plugin.data.dataset_folder import learned_prefix
from dsv3_plugin.data.index_file import map_sequences
from dsv3_plugin.data.packing import Packs


class Conversations:
    """The conversations of some files, numbered in a row.

    Args:
        prefixes: of the datasets, see `dataset_folder`.
    """

    def __init__(self, prefixes: Sequence[Path]) -> None:
        self.lengths = [map_sequences(prefix).lengths for prefix in prefixes]
        self._first = numpy.cumsum([0, *map(len, self.lengths)])
        self._ids = [IndexedDataset(str(prefix)) for prefix in prefixes]
        self._learned = [IndexedDataset(str(learned_prefix(prefix))) for prefix in prefixes]

    def __getitem__(self, number: int) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Token ids and which of them are learned, `[tokens]` both."""
        file = int(numpy.searchsorted(self._first, number, side="right")) - 1
        row = number - int(self._first[file])
        return self._ids[file][row], self._learned[file][row]


class PackedConversations(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Samples for upstream's samplers, which read them in their order.

    Args:
        conversations: what is packed.
        epochs: how.
        split: what upstream's sampler takes it for.
        number: of epochs; behind the last one all is padding, so that the last batch is whole.
            None: one after the other, without end.
        padding: the token in places that are filled up.
    """

    def __init__(
        self,
        conversations: Conversations,
        epochs: Epochs,
        split: Split,
        *,
        samples: int,
        number: int | None,
        padding: int,
    ) -> None:
        self.split = split
        self._conversations, self._epochs = conversations, epochs
        self._samples, self._number, self._padding = samples, number, padding
        self._ends: list[int] = []  # of the epochs that have been counted
        self._packs = lru_cache(maxsize=2)(epochs.epoch)

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        room, multiple = self._epochs.room, self._epochs.multiple
        row = {
            "tokens": torch.full((room,), self._padding, dtype=torch.int64),
            "labels": torch.full((room,), self._padding, dtype=torch.int64),
            "loss_mask": torch.zeros(room),
            "position_ids": torch.empty(room, dtype=torch.int64),
            "padding_mask": torch.ones(room, dtype=torch.bool),
        }
        start = 0
        for number in self.members(index):
            ids, learned = self._conversations[number]
            count, places = len(ids), -(-len(ids) // multiple) * multiple
            tokens = torch.from_numpy(ids.astype(numpy.int64))
            row["tokens"][start : start + count] = tokens
            row["labels"][start : start + count - 1] = tokens[1:]
            row["loss_mask"][start : start + count - 1] = torch.from_numpy(learned[1:].copy())
            row["position_ids"][start : start + places] = torch.arange(places)
            row["padding_mask"][start : start + count] = False
            start += places
        row["position_ids"][start:] = torch.arange(room - start)
        return row

    def members(self, index: int) -> list[int]:
        """The conversations of a sequence."""
        epoch, before = 0, 0
        while True:
            if epoch == self._number:
                return []
            if epoch == len(self._ends):
                self._ends.append(before + sequences_in(self._packs(epoch)))
            if index < self._ends[epoch]:
                break
            epoch, before = epoch + 1, self._ends[epoch]
        packs = self._packs(epoch)
        begin, end = packs.starts[index - before : index - before + 2]
        return packs.pieces[begin:end].tolist()


def sequences_in(packs: Packs) -> int:
    """How many sequences there are."""
    return len(packs.starts) - 1
