"""Answers in rounds: what of a prompt is asked in one, and what its answers are behind that.

An answer that had no end in its round is gone on with in the next: prompt and beginning are asked
as one text, whoever answers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from dsv3_plugin.rollouts.rollout import UNFINISHED, Rollout
from dsv3_plugin.rollouts.seeds import seed_below


@dataclass(frozen=True)
class Part:
    """What is asked at once: answers to one text.

    Attributes:
        tokens: of the text: a prompt, with the beginning of an answer where that is gone on with.
        n: answers to it.
        seed: of these.
        most: tokens of each.
        begun: the answer that is gone on with; None: they are new.
    """

    tokens: tuple[int, ...]
    n: int
    seed: int
    most: int
    begun: Rollout | None = None


def parts_of(
    prompt: tuple[int, ...],
    begun: Sequence[Rollout],
    n: int,
    seed: int,
    longest: int,
    most: int | None = None,
) -> list[Part]:
    """What is asked of a prompt in a round: n answers, or the rest of each that is unfinished.

    Args:
        prompt: token ids.
        begun: answers to it that are there; none of a prompt that is asked for the first time.
        n: answers to such a one.
        seed: of the prompt's answers in this round.
        longest: tokens that an answer may have.
        most: tokens of it in this round; None: all.
    """
    most = longest if most is None else min(most, longest)
    if not begun:
        return [Part(prompt, n, seed, most)]
    return [
        Part(
            (*prompt, *answer.tokens),
            1,
            seed_below(seed, number),
            min(most, longest - len(answer.tokens)),
            answer,
        )
        for number, answer in enumerate(begun)
        if answer.unfinished
    ]


def together(
    begun: Sequence[Rollout],
    parts: Sequence[Part],
    found: Sequence[Sequence[Rollout] | None],
    longest: int,
) -> list[Rollout]:
    """The answers to a prompt behind a round.

    Args:
        begun: those that were there.
        parts: what was asked: see `parts_of`.
        found: answers to each of these, or fewer where some did not come; None of an answer that is
            begun, and was not gone on with: it stays as it is, for the next round.
        longest: tokens that an answer may have.
    """
    if not begun:
        ((part,), (answers,)) = parts, found
        return [_behind(answer, part, longest) for answer in answers or ()]
    gone_on = iter(zip(parts, found, strict=True))
    return [
        whole
        for answer in begun
        for whole in (_gone_on(*next(gone_on), longest) if answer.unfinished else [answer])
    ]


def _gone_on(part: Part, found: Sequence[Rollout] | None, longest: int) -> Iterator[Rollout]:
    if found is None:
        yield part.begun
    else:
        yield from (_behind(more, part, longest) for more in found)


def _behind(found: Rollout, part: Part, longest: int) -> Rollout:
    """An answer with its beginning. It is unfinished where its round ended it: what is cut before
    that, by whoever answers, would be cut there again."""
    whole = found if part.begun is None else part.begun.gone_on(found)
    cut = found.finish_reason == "length" and len(found.tokens) == part.most
    return (
        replace(whole, finish_reason=UNFINISHED) if cut and len(whole.tokens) < longest else whole
    )
