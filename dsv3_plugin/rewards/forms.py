"""Rewards of an answer's form: tags, length, language."""

import unicodedata
from collections.abc import Sequence

from dsv3_plugin.rewards.verdict import Attempt, Judge, Verdict

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def tags(attempts: Sequence[Attempt]) -> list[Verdict]:
    """1 where an answer is thoughts in `<think>` and then `<answer>`, each once; else 0.

    DeepSeek-R1's format reward (arXiv 2501.12948, section 2.2.2). What the template has opened
    counts: the model cannot open it again.
    """
    return [Verdict(float(_tagged(attempt.whole))) for attempt in attempts]


def _tagged(text: str) -> bool:
    if any(text.count(tag) != 1 for tag in _TAGS):
        return False
    before, _, rest = text.partition("<think>")
    _, _, rest = rest.partition("</think>")
    between, _, rest = rest.partition("<answer>")
    _, closes, after = rest.partition("</answer>")
    return bool(closes) and not (before + between + after).strip()


def match(attempts: Sequence[Attempt]) -> list[Verdict]:
    """1 where an answer is the expected text, but for blanks around it; else 0.

    What stands in `<answer>` tags is the answer, where there are such.
    """
    return [_matched(attempt) for attempt in attempts]


def _matched(attempt: Attempt) -> Verdict:
    if attempt.expected is None:
        return Verdict(None, "the prompt has no answer to compare with")
    return Verdict(float(tagged(attempt.answer) == str(attempt.expected).strip()))


def tagged(answer: str) -> str:
    """What stands in the last `<answer>` tags of an answer; all of it where there are none."""
    _, opens, within_tags = answer.rpartition("<answer>")
    return (within_tags.partition("</answer>")[0] if opens else answer).strip()


def within(longest: int, margin: int) -> Judge:
    """DAPO's punishment of length: 0 up to `longest` - `margin` tokens, -1 at `longest`."""
    from dsv3_plugin.grpo.overlong import overlong_penalty

    def judge(attempts: Sequence[Attempt]) -> list[Verdict]:
        return [Verdict(overlong_penalty(a.tokens, longest, margin)) for a in attempts]

    return judge


def in_script(script: str) -> Judge:
    """The share of an answer's letters that are of a script ("LATIN", "CJK"), by Unicode's names,
    in whatever case.

    DeepSeek-R1's reward of consistent language (arXiv 2501.12948, section 2.3.2), by letters in
    place of words, which not every language divides. Without letters it is 1.
    """

    def judge(attempts: Sequence[Attempt]) -> list[Verdict]:
        return [Verdict(_share(attempt.text, script.upper())) for attempt in attempts]

    return judge


def _share(text: str, script: str) -> float:
    letters = [character for character in text if character.isalpha()]
    if not letters:
        return 1.0
    return sum(unicodedata.name(c, "").startswith(script) for c in letters) / len(letters)
