"""The conversations of a run: how they are packed, how many sequences that makes, what to tell."""

from collections.abc import Iterator

from dsv3_plugin.data.chat.count import count_epochs
from dsv3_plugin.data.chat.epochs import Epochs
from dsv3_plugin.data.index_file import map_sequences
from dsv3_plugin.data.run_data import RunData
from dsv3_plugin.errors import UserError
from dsv3_plugin.numbers import number_of
from dsv3_plugin.recipe.epochs_counted import EpochsCounted
from dsv3_plugin.recipe.sft import Sft


def conversation_notes(recipe: Sft, data: RunData) -> Iterator[str]:
    """Count what an epoch is made of, and say what a person should know of it."""
    counted = count(recipe, data)
    places = sum(counted.sequences) * recipe.data.seq_length
    yield (
        f"{counted.conversations:,} conversations fill {sum(counted.sequences):,} sequences in "
        f"{number_of(len(counted.sequences), 'epoch')}: {counted.tokens / places:.1%} of their "
        "places, and "
        f"{counted.learned / counted.tokens:.1%} of the tokens are the assistant's."
    )


def refuse_other_count(recipe: Sft, before: EpochsCounted | None) -> None:
    """Raise UserError if the curves of a run, and its steps, were made with other counts."""
    if recipe.training.epochs is not None and before != recipe.epochs_counted:
        raise UserError(
            f"the conversations in {recipe.data_folder} have just been built and counted, by which "
            f"the steps of {number_of(recipe.training.epochs, 'epoch')} are known now: start the "
            "run again."
        )


def count(recipe: Sft, data: RunData) -> EpochsCounted:
    """How many sequences the epochs of a recipe fill, written into the folder of its data."""
    prefixes = data.train_prefixes
    epochs = Epochs(
        [map_sequences(prefix).lengths for prefix in prefixes],
        recipe.file_weights,
        recipe.data.seq_length,
        recipe.places_multiple,
        recipe.training.seed,
    )
    number = recipe.training.epochs or 1
    return count_epochs(recipe.data_folder, prefixes, data.fingerprint, epochs, number)
