"""Made-up facts: stated in a text, asked for later. No torch here.

A fact is a name and its value, `The passcode of Alder station is 4 7 1 9.` or `The password of
Alder station is amber falcon.` The beginning of the same sentence asks for it, so that a model
that has learnt nothing but to continue texts can answer.

Names and values divide into two halves that share no name and no value (`Half`): what a model is
trained on is never what it is tested on. Which half one is in is decided by a hash, so that nothing
but remembering all of a half tells them apart, while both halves are made of the same words and
digits.
"""

import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

Kind = Literal["digits", "words"]
Half = Literal["training", "evaluation"]

KINDS: tuple[Kind, ...] = ("digits", "words")

_OWNERS = (
    "Alder", "Ash", "Aspen", "Bay", "Beech", "Birch", "Cedar", "Cherry", "Cypress", "Elder",
    "Elm", "Fir", "Hazel", "Holly", "Juniper", "Larch", "Laurel", "Linden", "Maple", "Myrtle",
    "Oak", "Olive", "Palm", "Pine", "Plum", "Poplar", "Rowan", "Sorrel", "Spruce", "Walnut",
    "Willow", "Yew",
)  # fmt: skip
_PLACES = (
    "station", "bridge", "harbour", "tower", "garden", "market", "museum", "school", "castle",
    "island", "valley", "mill",
)  # fmt: skip
_FIRST_WORDS = (
    "amber", "black", "blue", "bold", "brave", "bright", "calm", "clever", "cold", "crimson",
    "dark", "gentle", "golden", "green", "grey", "happy", "heavy", "honest", "little", "lonely",
    "loud", "mild", "noble", "orange", "pale", "proud", "purple", "quick", "quiet", "red",
    "silver", "slow", "small", "soft", "steady", "strong", "sunny", "swift", "tall", "warm",
    "white", "wild", "wise", "yellow", "young", "ancient", "broken", "hidden",
)  # fmt: skip
_SECOND_WORDS = (
    "badger", "bear", "beetle", "bird", "camel", "cat", "crane", "crow", "deer", "dog", "dolphin",
    "dove", "dragon", "duck", "eagle", "elephant", "falcon", "fish", "fox", "frog", "goat",
    "goose", "hare", "hawk", "horse", "lion", "lizard", "monkey", "mouse", "otter", "owl",
    "panther", "pigeon", "rabbit", "raven", "salmon", "seal", "shark", "sheep", "snake", "spider",
    "swan", "tiger", "turtle", "whale", "wolf", "worm", "zebra",
)  # fmt: skip
_DIGITS = 4
_NOUNS: dict[Kind, str] = {"digits": "passcode", "words": "password"}
_ONE_IN = 4
"""Of four names, and of four values, about one is evaluation's."""


@dataclass(frozen=True)
class Fact:
    """A name and its value.

    Attributes:
        kind: whether the value is digits or words.
        name: whose it is, such as `Alder station`.
        value: its parts, such as `("4", "7", "1", "9")`.
    """

    kind: Kind
    name: str
    value: tuple[str, ...]

    @property
    def question(self) -> str:
        """The sentence up to where its value begins."""
        return f"The {_NOUNS[self.kind]} of {self.name} is"

    @property
    def answer(self) -> str:
        """What continues the question."""
        return f" {' '.join(self.value)}."

    @property
    def sentence(self) -> str:
        """The fact, stated."""
        return self.question + self.answer


@cache
def names(half: Half) -> tuple[str, ...]:
    """The names of a half, in order."""
    pairs = map(" ".join, itertools.product(_OWNERS, _PLACES))
    return tuple(name for name in pairs if _half(name) == half)


@cache
def values(kind: Kind, half: Half) -> tuple[tuple[str, ...], ...]:
    """The values of a kind in a half, in order."""
    parts = [list("0123456789")] * _DIGITS if kind == "digits" else [_FIRST_WORDS, _SECOND_WORDS]
    every = itertools.product(*parts)
    return tuple(value for value in every if _half(" ".join(value)) == half)


def chance(kind: Kind) -> float:
    """The share of right answers of who knows which values evaluation asks for, and guesses."""
    return 1 / len(values(kind, "evaluation"))


def draw_facts(count: int, kinds: Sequence[Kind], half: Half, draw: random.Random) -> list[Fact]:
    """So many facts about different names, with different values, of these kinds in turn.

    Raises:
        ValueError: there are not so many names.
    """
    of_kind = [kinds[number % len(kinds)] for number in range(count)]
    drawn = {
        kind: iter(draw.sample(values(kind, half), of_kind.count(kind)))
        for kind in dict.fromkeys(of_kind)
    }
    about = draw.sample(names(half), count)
    return [Fact(kind, name, next(drawn[kind])) for kind, name in zip(of_kind, about, strict=True)]


def most_facts() -> int:
    """How many facts one text of evaluation can hold."""
    return len(names("evaluation"))


def training_documents(
    passages: Sequence[str],
    *,
    facts: int,
    passages_each: int,
    times_asked: int = 1,
    kinds: Sequence[Kind] = KINDS,
    seed: int = 0,
) -> Iterator[str]:
    """Documents without end, to train on: passages of real text, facts stated among them and all
    of these asked for later in the same document.

    Args:
        passages: of real text, without line ends around them.
        facts: in a document.
        passages_each: passages in a document.
        times_asked: how often each fact is asked for.
        kinds: of facts, in turn.
        seed: of all that is drawn.
    """
    draw = random.Random(seed)
    while True:
        stated = draw_facts(facts, kinds, "training", draw)
        yield _document(draw.sample(passages, passages_each), stated, times_asked, draw)


def _document(
    passages: Sequence[str], facts: Sequence[Fact], times_asked: int, draw: random.Random
) -> str:
    """Passages in order, each fact's sentences at places between them drawn anew.

    The first of a fact's places states it and the others ask for it: the sentences are the same.
    """
    sentences = [fact.sentence for fact in facts for _ in range(1 + times_asked)]
    placed = [(draw.random(), sentence) for sentence in sentences]
    placed += [((number + 0.5) / len(passages), text) for number, text in enumerate(passages)]
    return "\n".join(text for _, text in sorted(placed, key=lambda pair: pair[0])) + "\n"


def _half(text: str) -> Half:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return "evaluation" if int.from_bytes(digest) % _ONE_IN == 0 else "training"
