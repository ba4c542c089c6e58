"""Problems in arithmetic whose answers can be verified: which of two numbers is the larger.

All pairs of different numbers of two digits, each in one of its orders, of which some are held out:
they are neither taught nor asked in training, in either order. There are 90 numbers, and the best
answer that is always the same is right in a fiftieth of the problems.

What is taught is a careless teacher's: the larger number in three of ten problems, the smaller
in as many, and otherwise any number. A model that has learned all there is of that answers
likewise, and can be told to answer better by rewards alone.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

HELD_OUT = 256
"""Problems that are only asked to see how good a model is."""
RIGHT, SMALLER = 0.3, 0.3
"""Shares of the teacher's answers that are the larger number, and the smaller one; the rest is left
to chance."""
TIMES = 8
"""How often the teacher has been asked each problem."""

_NUMBERS = range(10, 100)
_SEED = 20


def write(path: Path) -> None:
    """Write one of the files of these problems, JSON lines: `data.made_by` of a recipe.

    Args:
        path: called `counting.jsonl` (numbers in their order), `taught.jsonl` (conversations with
            the teacher), `asked.jsonl` or `held_out.jsonl` (prompts with their answers).

    Raises:
        ValueError: it is called otherwise.
    """
    made = {rows.__name__: rows for rows in (counting, taught, asked, held_out)}
    rows = made.get(path.stem)
    if rows is None:
        raise ValueError(f"{path.name} is called like none of {', '.join(made)}")
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows()), encoding="utf-8")


def counting() -> Iterator[dict[str, str]]:
    """Texts that count up or down from some number, a few numbers each."""
    draw = random.Random(_SEED + 2)
    for _ in range(4000):
        begin, step = draw.choice(_NUMBERS), draw.choice((-1, 1))
        numbers = range(begin, begin + draw.randint(5, 25) * step, step)
        yield {"text": " ".join(str(number) for number in numbers if number in _NUMBERS)}


def held_out() -> Iterator[dict[str, str]]:
    """Prompts with their answers."""
    return map(_problem, _pairs()[:HELD_OUT])


def asked() -> Iterator[dict[str, str]]:
    """Prompts with their answers, all others than those held out."""
    return map(_problem, _pairs()[HELD_OUT:])


def taught() -> Iterator[dict[str, str]]:
    """Prompts with the teacher's responses, of every problem that is not held out, several times
    each."""
    draw = random.Random(_SEED + 1)
    pairs = _pairs()[HELD_OUT:]
    for _ in range(TIMES):
        for pair in pairs:
            chance = draw.random()
            if chance < RIGHT:
                said = max(pair)
            elif chance < RIGHT + SMALLER:
                said = min(pair)
            else:
                said = draw.choice(_NUMBERS)
            yield {"prompt": _text(pair), "response": str(said)}


def _pairs() -> list[tuple[int, int]]:
    """Each pair of numbers once, in one of its two orders."""
    draw = random.Random(_SEED)
    pairs = [draw.choice(((a, b), (b, a))) for a in _NUMBERS for b in _NUMBERS if a < b]
    draw.shuffle(pairs)
    return pairs


def _problem(pair: tuple[int, int]) -> dict[str, str]:
    return {"prompt": _text(pair), "answer": str(max(pair))}


def _text(pair: tuple[int, int]) -> str:
    first, second = pair
    return f"{first} {second}"
