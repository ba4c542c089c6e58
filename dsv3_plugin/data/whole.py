"""Samples of whole documents: upstream's datasets, blends and samplers over our packs.

A sample is a sequence that `packing` has filled. What is left free at its end is padding: it is in
no loss, and the `padding_mask` tells it to routers. Tokens attend across the documents of a
sequence, and predict across their borders, as in a stream of documents; the last token of a
sequence predicts only where its document goes on in another.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy
import torch
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.megatron_dataset import MegatronDataset
from megatron.core.datasets.utils import Split

from dsv3_plugin.data.index_file import map_sequences
from dsv3_plugin.data.long_documents import by_length, drawn
from dsv3_plugin.data.rounds import LongShare, Pieces, rounds
from dsv3_plugin.files.atomic import replacing


@dataclass(frozen=True)
class WholePacking:
    """How documents are to stay whole.

    Attributes:
        least: tokens of a long document, at the least.
        share: of the training tokens, those that are to come from long documents; None: as they
            come.
    """

    least: int
    share: float | None = None


@dataclass
class WholeDocumentsConfig(GPTDatasetConfig):
    """Upstream's, and the share of long documents.

    Attributes:
        long_document: tokens of a long document, at the least.
        long_shares: the share of its tokens that come from long documents, by prefix; where there
            is none, documents come as they are.
    """

    long_document: int = 0
    long_shares: Mapping[str, float | None] | None = None


class WholeDocuments(MegatronDataset):
    """Samples of a built dataset. Their order is that of its `rounds`, which a seed decides."""

    INDICES = ("first", "pieces", "starts")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._first, self._pieces, self._starts = self._indices()

    numel_low_level_dataset = staticmethod(GPTDataset.numel_low_level_dataset)
    build_low_level_dataset = staticmethod(GPTDataset.build_low_level_dataset)

    @staticmethod
    def _key_config_attributes() -> list[str]:
        return [*MegatronDataset._key_config_attributes(), "long_document", "long_shares"]

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        room = self.config.sequence_length
        begin, end = self._starts[index], self._starts[index + 1]
        parts = [self._piece(int(piece)) for piece in self._pieces[begin:end]]
        text = numpy.concatenate([ids for ids, _ in parts])
        following = parts[-1][1]  # what the last token is followed by elsewhere, if by anything
        tokens = torch.full((room,), self.config.tokenizer.eod, dtype=torch.int64)
        labels = tokens.clone()
        loss_mask = torch.zeros(room)
        ids = torch.from_numpy(text.astype(numpy.int64))
        tokens[: len(ids)] = ids
        predicted = torch.cat([ids[1:], ids.new_tensor(following)])
        labels[: len(predicted)] = predicted
        loss_mask[: len(predicted)] = 1.0
        return {
            "tokens": tokens,
            "labels": labels,
            "loss_mask": loss_mask,
            "position_ids": torch.arange(room),
            "padding_mask": torch.arange(room) >= len(ids),
        }

    def _piece(self, piece: int) -> tuple[numpy.ndarray, list[int]]:
        """A piece's tokens, and the one that follows them in its document."""
        document = int(numpy.searchsorted(self._first, piece, side="right")) - 1
        room, dataset = self.config.sequence_length, self.dataset
        offset = (piece - int(self._first[document])) * room
        left = int(dataset.sequence_lengths[document]) - offset
        ids = dataset.get(document, offset=offset, length=min(room + 1, left))
        return ids[:room], ids[room:].tolist()

    def _indices(self) -> tuple[numpy.ndarray, ...]:
        """Where documents' pieces begin, and the packs; written by rank 0, mapped by all."""
        name = type(self).__name__
        cache = self.config.path_to_cache or Path(self.dataset_path, "cache", f"{name}_indices")
        name = f"{self.unique_description_hash}-{name}-{self.index_split.name}"
        paths = [Path(cache, f"{name}-{index}_index.npy") for index in self.INDICES]
        if not paths[-1].is_file():
            paths[0].parent.mkdir(parents=True, exist_ok=True)
            for path, array in zip(paths, self._packed(), strict=True):
                with replacing(path) as file:
                    numpy.save(file, array, allow_pickle=False)
        return tuple(numpy.load(path, mmap_mode="r", allow_pickle=False) for path in paths)

    def _packed(self) -> Iterator[numpy.ndarray]:
        """As many rounds as make the samples that are asked for: one, where no number is."""
        config = self.config
        pieces = Pieces(self.dataset.sequence_lengths, config.sequence_length)
        share = (config.long_shares or {}).get(self.dataset_path)
        long = None if share is None else LongShare(share, config.long_document)
        found, sequences = [], 0
        for packs in rounds(pieces, config.random_seed, long):
            found.append(packs)
            sequences += len(packs.starts) - 1
            if sequences >= (self.num_samples or 0):
                break
        yield pieces.first
        yield numpy.concatenate([packs.pieces for packs in found])
        before = numpy.cumsum([0, *(len(packs.pieces) for packs in found)])
        yield numpy.concatenate(
            [
                numpy.zeros(1, numpy.int64),
                *(packs.starts[1:] + shift for packs, shift in zip(found, before, strict=False)),
            ]
        )


def whole_documents(
    config: GPTDatasetConfig, whole: WholePacking, weights: Sequence[float] | None
) -> WholeDocumentsConfig:
    """Upstream's configuration for whole documents.

    Args:
        config: with the blends to draw from.
        whole: how.
        weights: of the training blend, as they were given; None: they were not.

    Raises:
        UserError: the share of long documents cannot be had.
    """
    given = {each.name: getattr(config, each.name) for each in fields(config) if each.init}
    blends, long_shares = config.blend_per_split, None
    if whole.share is not None and blends is not None and blends[Split.train.value]:
        prefixes, _ = blends[Split.train.value]
        found = [by_length(map_sequences(Path(each)).lengths, whole.least) for each in prefixes]
        ways = dict(zip(prefixes, drawn(found, weights, whole.share), strict=True))
        ways = {prefix: way for prefix, way in ways.items() if way.weight > 0}
        long_shares = {prefix: way.long_share for prefix, way in ways.items()}
        blend_weights = [way.weight for way in ways.values()] if len(ways) > 1 else None
        given["blend_per_split"] = [([*ways], blend_weights), *blends[1:]]
    return WholeDocumentsConfig(**given, long_document=whole.least, long_shares=long_shares)
