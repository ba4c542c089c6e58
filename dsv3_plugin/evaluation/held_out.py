"""Tokens that a model was not trained on: what its run held out, or a dataset that is named."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy
from megatron.core.datasets.indexed_dataset import IndexedDataset

from dsv3_plugin.data.dataset_folder import MANIFEST, Dataset, open_dataset
from dsv3_plugin.data.index_file import read_index
from dsv3_plugin.errors import UserError
from dsv3_plugin.evaluation.checkpoint import Place
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.recipe.common import HELD_OUT_SETS
from dsv3_plugin.recipe.kept import data_in, section
from dsv3_plugin.recipe.places import data_at

_SUFFIXES = (".bin", ".idx")


@dataclass(frozen=True)
class TokenSet:
    """Documents in upstream's indexed format, laid end to end in their order.

    Attributes:
        name: what they are, for sentences.
        prefix: of the two files.
    """

    name: str
    prefix: Path

    def __len__(self) -> int:
        return int(self._ends[-1])

    def sequence(self, first: int, count: int) -> numpy.ndarray:
        """So many tokens from a place on, int64."""
        pieces = []
        number = int(numpy.searchsorted(self._ends, first, side="right"))
        offset = first - (int(self._ends[number - 1]) if number else 0)
        while count:
            piece = self.documents.get(number, offset)[:count]
            pieces.append(piece)
            count -= len(piece)
            number, offset = number + 1, 0
        return numpy.concatenate(pieces).astype(numpy.int64)

    def sequences(self, length: int, most: int) -> list[int]:
        """Where sequences of a length begin, so many at most, spread evenly, none over another.

        Raises:
            UserError: there is not one.
        """
        there = (len(self) - 1) // length  # each has one token behind it, that its last predicts
        if not there:
            raise UserError(
                f"{self.name} has {len(self):,} tokens, less than one sequence of {length:,}: ask "
                "shorter ones with --seq-length, or name more with --data"
            )
        chosen = min(there, most)
        return [length * (number * there // chosen) for number in range(chosen)]

    @cached_property
    def documents(self) -> IndexedDataset:
        """Each of them, checked; its arrays are views of a mapping that goes when it does."""
        read_index(self.prefix)  # upstream reads wherever an index points
        return IndexedDataset(str(self.prefix))

    @cached_property
    def _ends(self) -> numpy.ndarray:
        return numpy.cumsum(self.documents.sequence_lengths, dtype=numpy.int64)


def held_out_sets(place: Place, data: str | None) -> list[TokenSet]:
    """What a checkpoint's loss is computed on.

    Args:
        place: of the checkpoint.
        data: a dataset folder, of which the held-out part is taken if it has one, or the prefix of
            an indexed corpus; None: what the run kept from training.

    Raises:
        UserError: there is no such data, or the run held nothing out.
    """
    if data is not None:
        return _named_sets(data_at(data))
    if place.run is None:
        raise UserError(
            f"{place.folder} lies in no run's folder, so nothing says what was held out: name a "
            "dataset with --data"
        )
    sets = held_out_of(place.run)
    if not sets:
        raise UserError(f"{place.run.root} held nothing out: name a dataset with --data")
    return [one.tokens for one in sets]


def _named_sets(path: Path) -> list[TokenSet]:
    if (path / MANIFEST).exists():
        dataset = open_dataset(path)
        if dataset.held_out_prefix is not None:
            return [TokenSet(f"the held-out part of {path}", dataset.held_out_prefix)]
        return [TokenSet(f"the training part of {path}", dataset.train_prefix)]
    prefix = path.with_suffix("") if path.suffix in _SUFFIXES else path
    if not all(prefix.with_name(prefix.name + suffix).is_file() for suffix in _SUFFIXES):
        raise UserError(
            f"{path} is no dataset: name a folder that `dsv3 data build` made, or PREFIX where "
            "PREFIX.bin and PREFIX.idx are"
        )
    return [TokenSet(str(path), prefix)]


@dataclass(frozen=True)
class HeldOut:
    """What a run held out: the part of a dataset, or a set of its own.

    Attributes:
        dataset: that it is of.
        tokens: of it.
    """

    dataset: Dataset
    tokens: TokenSet


def held_out_of(run: RunFolder) -> list[HeldOut]:
    """All that a run held out, wherever its own folder is by now.

    The held-out part of its dataset, or of each of a mixture's, then the sets that it names.

    Raises:
        UserError: a dataset is damaged.
    """
    data = section(run.recipe, "data")
    folder = data_at(data_in(run))
    trained_on = [folder, *sorted(place.parent for place in folder.glob(f"*/{MANIFEST}"))]
    parts = [
        HeldOut(one, TokenSet(f"the held-out part of {one.folder}", one.held_out_prefix))
        for one in _datasets(trained_on)
        if one.held_out_prefix is not None
    ]
    names = data.get("held_out_sets")
    own = [folder / HELD_OUT_SETS / name for name in names] if isinstance(names, dict) else []
    return parts + [
        HeldOut(one, TokenSet(one.folder.name, one.train_prefix)) for one in _datasets(own)
    ]


def _datasets(folders: list[Path]) -> list[Dataset]:
    return [open_dataset(folder) for folder in folders if (folder / MANIFEST).exists()]


def sequence_length_of(run: RunFolder) -> int | None:
    """How long a run's sequences are; None: its recipe does not say."""
    length = section(run.recipe, "data").get("seq_length")
    return length if isinstance(length, int) else None
