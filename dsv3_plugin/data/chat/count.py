"""How many sequences the conversations of a run fill, found out once and written down."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy

from dsv3_plugin.data.chat.epochs import Epochs
from dsv3_plugin.data.dataset_folder import learned_prefix
from dsv3_plugin.data.index_file import map_sequences
from dsv3_plugin.files.atomic import replace_file
from dsv3_plugin.recipe.epochs_counted import FILE, EpochsCounted, epochs_counted


def count_epochs(
    folder: Path, prefixes: Sequence[Path], fingerprint: str, epochs: Epochs, number: int
) -> EpochsCounted:
    """Count the first epochs, and write what is found into a data folder.

    Args:
        folder: of the data.
        prefixes: of the datasets, in the order of `epochs.lengths`.
        fingerprint: of the data.
        number: of epochs.
    """
    settings = (fingerprint, epochs.weights, epochs.room, epochs.multiple, epochs.seed, number)
    made_from = hashlib.blake2b(repr(settings).encode(), digest_size=16).hexdigest()
    known = epochs_counted(folder)
    if known is not None and known.made_from == made_from:
        return known
    lengths = numpy.concatenate(epochs.lengths).astype(numpy.int64)
    learned = numpy.concatenate([_learned(prefix) for prefix in prefixes])
    sequences, conversations, tokens, counted = [], 0, 0, 0
    for epoch in range(number):
        packs = epochs.epoch(epoch)
        sequences.append(len(packs.starts) - 1)
        conversations += len(packs.pieces)
        tokens += int(lengths[packs.pieces].sum())
        counted += int(learned[packs.pieces].sum())
    found = EpochsCounted(
        made_from=made_from,
        sequences=sequences,
        conversations=conversations,
        tokens=tokens,
        learned=counted,
    )
    replace_file(folder / FILE, found.model_dump_json(indent=2).encode() + b"\n")
    return found


def _learned(prefix: Path) -> numpy.ndarray:
    """Learned tokens of each conversation of a dataset."""
    sequences = map_sequences(prefix)
    path = learned_prefix(prefix)
    marks = numpy.memmap(path.with_name(f"{path.name}.bin"), numpy.uint8, "r")
    begins = numpy.cumsum(sequences.lengths, dtype=numpy.int64) - sequences.lengths
    # The first token of a conversation is predicted from nothing, so it is not learned.
    return numpy.add.reduceat(marks, begins, dtype=numpy.int64) - marks[begins]
