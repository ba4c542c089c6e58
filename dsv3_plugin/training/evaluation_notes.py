"""What a person should know of that which a run is evaluated on, once it is built."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from dsv3_plugin.data.chat.epochs import Epochs
from dsv3_plugin.data.dataset_folder import Part
from dsv3_plugin.data.index_file import map_sequences
from dsv3_plugin.data.run_data import RunData
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.recipe.sft import Sft


def evaluation_notes(recipe: Recipe, data: RunData) -> Iterator[str | None]:
    """Of each thing that is evaluated on: how little it is, and that it is read again."""
    held_out = [dataset.manifest.held_out for dataset in data.datasets]
    if recipe.data.held_out:
        yield from _of(recipe, [part for part in held_out if part], data.valid_prefixes, "part")
    for name, dataset in data.held_out_sets.items():
        yield from _of(recipe, [dataset.manifest.train], [dataset.train_prefix], f"set {name}")


def _of(
    recipe: Recipe, parts: Sequence[Part], prefixes: Sequence[Path], what: str
) -> Iterator[str | None]:
    what = f"held-out {what}"
    yield single_document_note(recipe, sum(part.documents for part in parts), what)
    if recipe.data.packing != "conversations":
        yield evaluation_note(recipe, sum(part.tokens for part in parts), what)
    elif isinstance(recipe, Sft) and prefixes:
        yield repeated_note(recipe, _packed(recipe, prefixes), what)


def single_document_note(recipe: Recipe, documents: int, what: str) -> str | None:
    """That a loss is of one document alone; None: of several, or of none."""
    if recipe.training.eval_interval is None or documents != 1:
        return None
    kind = "conversation" if recipe.data.packing == "conversations" else "document"
    return f"The {what} is a single {kind}: what is evaluated says how that one is predicted."


def evaluation_note(
    recipe: Recipe, held_out_tokens: int, what: str = "held-out part"
) -> str | None:
    """How often the held-out part is read, where it is read more than once; None: it suffices."""
    return repeated_note(recipe, (held_out_tokens - 1) // recipe.data.seq_length, what)


def repeated_note(recipe: Recipe, there: int, what: str) -> str | None:
    """As `evaluation_note`, of something that has so many sequences."""
    training, steps = recipe.training, recipe.total_steps
    if training.eval_interval is None:
        return None
    evaluations = 1 + math.ceil(steps / training.eval_interval)  # the first before any step
    read = evaluations * training.eval_steps * recipe.batch_schedule.batch(0)
    if read <= there:
        return None
    sequences = "1 sequence" if there == 1 else f"{there:,} sequences"
    return (
        f"The {what} has {sequences} and {evaluations:,} evaluations read {read:,}: it is repeated."
    )


def _packed(recipe: Sft, prefixes: Sequence[Path]) -> int:
    """Sequences that conversations fill, as evaluations read them."""
    lengths = [map_sequences(prefix).lengths for prefix in prefixes]
    seed = recipe.training.seed
    order = Epochs(lengths, None, recipe.data.seq_length, recipe.places_multiple, seed)
    return len(order.epoch(0).starts) - 1
