"""Whether too little is held out, as far as the sizes of files tell before anything is built.

No token is less than a byte of its text, so that a file has fewer tokens than bytes. What is
packed as conversations, or compressed, is known once it is built, and said then.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from dsv3_plugin.data.expand import SUFFIXES
from dsv3_plugin.data.kinds import kind_of
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.named import named
from dsv3_plugin.numbers import bytes_text
from dsv3_plugin.recipe import corpora
from dsv3_plugin.recipe.schema import Recipe

_MOST_FILES = 1000
"""More of them are not looked at one by one."""
_NOT_AS_LONG = (*SUFFIXES, ".parquet", ".bin")
"""Ends of names of files that hold more tokens than bytes, or may do so."""


def little_held_out(recipe: Recipe) -> Iterator[str]:
    """A sentence for each thing that is evaluated on and is certainly less than one evaluation, or
    a single document."""
    training, data = recipe.training, recipe.data
    yield from _nothing_to_hold_out(recipe)
    if training.eval_interval is None or data.packing == "conversations":
        return
    batch = recipe.batch_schedule.batch(0)
    one = training.eval_steps * batch * data.seq_length
    read = f"and an evaluation reads {one:,} (training.eval_steps {training.eval_steps:,})"
    drawn = [member for _, member in corpora.drawn_from(data.corpus)]
    names = [name for member in drawn for name in member.names]
    size = None if corpora.STDLIB in names else _bytes(list(map(named, names)))
    if size is not None and 0 < size * data.held_out < one:
        yield (
            f"data.held_out {data.held_out:g} of {bytes_text(size)} is less than "
            f"{int(size * data.held_out) + 1:,} tokens, {read}: it is repeated"
        )
    for name, path in data.held_out_sets.items():
        size = _bytes([named(path)])
        if size is not None and 0 < size < one:
            yield (
                f"data.held_out_sets.{name} has {bytes_text(size)}, and so fewer than {size + 1:,} "
                f"tokens, {read}: it is repeated"
            )
        if _is_one_document(named(path), data.text_key):
            yield (
                f"data.held_out_sets.{name} is a single document: what is evaluated says how that "
                "one is predicted"
            )


def _nothing_to_hold_out(recipe: Recipe) -> Iterator[str]:
    """A sentence for each corpus of one document, none of which can be held out."""
    data = recipe.data
    if not data.held_out or data.packing not in ("stream", "whole"):
        return
    for _, member in corpora.drawn_from(data.corpus):
        if len(member.names) == 1 and _is_one_document(named(member.names[0]), data.text_key):
            yield (
                f"data.corpus: {member} is one single document, so none can be held out, and it "
                "is refused when the data are built: split it into several, or set data.held_out "
                "to 0"
            )


def _is_one_document(path: Path, key: str) -> bool:
    try:
        return path.is_file() and kind_of(path, [key]) == "text"
    except UserError:  # whoever reads it says so
        return False


def _bytes(places: Sequence[Path]) -> int | None:
    """Of all files there; None where that is not known, or says nothing of their tokens."""
    total = files = 0
    for place in places:
        if place.is_dir():
            found = (Path(at, name) for at, _, names in os.walk(place) for name in names)
        else:
            found = iter([place])
        for path in found:
            files += 1
            if files > _MOST_FILES or path.name.lower().endswith(_NOT_AS_LONG):
                return None
            try:
                total += path.stat().st_size
            except OSError:
                return None
    return total
