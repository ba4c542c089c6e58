"""What `data.corpus` names: one corpus or a mixture of several, of text or encoded already.

Encoded ones are in upstream's indexed format, `PREFIX.bin` and `PREFIX.idx`; either file or their
prefix names them.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv3_plugin.files.named import named
from dsv3_plugin.recipe.sections import CorpusMember

STDLIB = "stdlib"

_SUFFIXES = (".bin", ".idx")

Corpus = str | Path | Sequence[str | Path | CorpusMember | Mapping[str, Any]]
"""As a recipe, checked or not, or a command line names it."""


@dataclass(frozen=True)
class Member:
    """What is drawn from by itself: a stream of texts, or an encoded corpus.

    Attributes:
        names: as they were given.
        weight: the share of the sequences that come from it, in proportion to those of the others;
            None: as its tokens are to theirs.
        prefix: of an encoded corpus; None: it is text.
    """

    names: tuple[str, ...]
    weight: float | None = None
    prefix: Path | None = None

    def __str__(self) -> str:
        return ", ".join(self.names)

    @property
    def place(self) -> tuple[str, ...]:
        """What it names, however it is written (`texts/`, `./texts`, an absolute path)."""
        if self.prefix is not None:
            return (os.path.realpath(self.prefix),)
        return tuple(
            name if name == STDLIB else os.path.realpath(named(name)) for name in self.names
        )


def members(corpus: Corpus) -> tuple[Member, ...]:
    """The members of a corpus, in their order.

    What is given a weight, or written as a mapping, is a member of its own, and so is what is
    encoded already. Texts that are named side by side are one, the first.
    """
    named_so = [corpus] if isinstance(corpus, str | Path) else list(corpus)
    texts: list[str] = []
    found: list[Member | None] = []
    for entry in named_so:
        own = not isinstance(entry, str | Path)
        path, weight = _path_and_weight(entry)
        prefix = indexed_prefix(path)
        if own or prefix is not None:
            found.append(Member((path,), weight, prefix))
        else:
            if not texts:
                found.append(None)  # their place
            texts.append(path)
    together = Member(tuple(texts))
    return tuple(member or together for member in found) or (together,)


def _path_and_weight(entry: str | Path | CorpusMember | Mapping[str, Any]) -> tuple[str, Any]:
    if isinstance(entry, str | Path):
        return str(entry), None
    if isinstance(entry, CorpusMember):
        return entry.path, entry.weight
    return entry["path"], entry.get("weight")


def drawn_from(corpus: Corpus) -> tuple[tuple[int, Member], ...]:
    """The members that anything is drawn from, each with its number among all."""
    return tuple(
        (number, member) for number, member in enumerate(members(corpus)) if member.weight != 0
    )


def folders(data_folder: Path, corpus: Corpus) -> tuple[Path, ...]:
    """The dataset folder of each member that is drawn from."""
    return tuple(
        data_folder if is_one(corpus) else data_folder / f"member{number}"
        for number, _ in drawn_from(corpus)
    )


def is_one(corpus: Corpus) -> bool:
    """Whether a corpus is no mixture."""
    return len(members(corpus)) == 1


def indexed_prefix(name: str) -> Path | None:
    """The prefix of the encoded corpus that a name stands for; None: it names text.

    Upstream keeps a folder of the prefix's name beside the two files.
    """
    if name == STDLIB:
        return None
    path = named(name)
    if path.suffix in _SUFFIXES and not path.is_dir():
        return path.with_suffix("")
    there = [path.with_name(path.name + suffix).is_file() for suffix in _SUFFIXES if path.name]
    return path if there and (all(there) or (any(there) and not path.exists())) else None


def same(one: Corpus, other: Corpus) -> bool:
    """Whether two ways of writing a corpus mean the same places, in the same order and weights.

    Nothing has to be there any more.
    """
    return _meant(one) == _meant(other)


def _meant(corpus: Corpus) -> list[tuple[tuple[str, ...], float | None]]:
    mixed = members(corpus)
    total = sum(member.weight or 0.0 for member in mixed) or 1.0
    return [
        (member.place, member.weight and (member.weight / total if len(mixed) > 1 else None))
        for member in mixed
    ]


def lies_in(name: str, folder: str) -> bool:
    """Whether texts of a name are among those that are read of a folder.

    Those in hidden folders and behind links to folders are not, nor are encoded ones.
    """
    if STDLIB in (name, folder) or indexed_prefix(name) is not None:
        return False
    within, path = os.path.realpath(named(folder)), named(name)
    places = [os.path.realpath(path)]
    if not path.is_dir():  # a link to a file is read
        places.append(os.path.join(os.path.realpath(path.parent), path.name))
    for place in map(Path, places):
        if place.is_relative_to(within) and (below := place.relative_to(within).parts):
            return not any(part.startswith(".") for part in below)
    return False


def text(corpus: Corpus) -> str:
    """A corpus in words, as a sentence names it."""
    mixed = members(corpus)
    if len(mixed) == 1:
        return str(mixed[0])
    return ", ".join(
        str(member) if member.weight is None else f"{member} (weight {member.weight:g})"
        for member in mixed
    )


def shares(drawn: Sequence[Member], tokens: Sequence[int]) -> list[float]:
    """The share of the sequences that comes from each member, where its tokens are so many."""
    weights = [
        size if member.weight is None else member.weight
        for member, size in zip(drawn, tokens, strict=True)
    ]
    return [weight / sum(weights) for weight in weights]


def wrong_with(corpus: Corpus, key: str = "data.corpus") -> Iterator[str]:
    """What is wrong with a corpus or a mixture, a sentence each; `key` is where it is said."""
    mixed = members(corpus)
    if any(not name for member in mixed for name in member.names):
        yield f'{key} names nothing (""): name a file, a folder, or "{STDLIB}"'
    weights = [member.weight for member in mixed]
    if None in weights and any(weight is not None for weight in weights):
        without = next(member for member in mixed if member.weight is None)
        yield (
            f"{key} gives weights, and none to {without}: give each member one, or none "
            f"(then they are drawn from by their sizes)"
        )
    elif weights[0] is not None and min(weights) < 0:
        least = min(mixed, key=lambda member: member.weight)
        yield f"{key} gives {least} the weight {least.weight:g}: give it one of 0 or more"
    elif weights[0] is not None and sum(weights) == 0:
        yield f"{key}: the weights sum to 0, so that nothing would be drawn: give one above 0"
    elif weights[0] is not None and math.isinf(sum(weights)):
        yield f"{key}: the weights sum to more than a number can be: give smaller ones"
    if (twice := _twice(place for member in mixed for place in member.place)) is not None:
        yield f"{key} names {twice} twice: name it once, with the weight that it is to have"


def _twice(places: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for place in places:
        if place in seen:
            return place
        seen.add(place)
    return None
