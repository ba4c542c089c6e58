"""A teacher's answer as samples to learn from, in the two forms of DeepSeek-V3's report.

Section 5.1 of arXiv 2412.19437: of each problem ⟨problem, original response⟩, and ⟨system prompt,
problem, R1 response⟩, whose system prompt asks for reflection and verification. Where a problem has
no original response, its first form has the teacher's.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dsv3_plugin.rollouts.prompts import Prompt

SYSTEM_PROMPT = (
    "Think before you answer: lay out what is asked, work step by step, check each step, and where "
    "one does not hold go back and correct it. Then answer."
)
"""The report does not print its own; it says what it asks for."""

Row = dict[str, Any]


def samples_of(problem: Prompt, responses: Sequence[str], system: str) -> Iterator[Row]:
    """Rows of a corpus for `stage: sft`.

    Args:
        problem: that was answered.
        responses: to it, accepted.
        system: system prompt of the second form; before a problem's own.
    """
    original = problem.row.get("response")
    own = problem.system
    if isinstance(original, str) and responses:
        yield _row(problem, own, original)
    for response in responses:
        if not isinstance(original, str):
            yield _row(problem, own, response)
        yield _row(problem, f"{system}\n\n{own}" if own else system, response)


def _row(problem: Prompt, system: str | None, response: str) -> Row:
    turns = problem.conversation.messages
    rest = turns[1:] if problem.system is not None else turns
    if len(rest) == 1 and isinstance(rest[0]["content"], str) and not problem.conversation.tools:
        row: Row = {} if system is None else {"system": system}
        return row | {"prompt": rest[0]["content"], "response": response}
    first = [] if system is None else [_turn("system", system)]
    row = {"messages": [*first, *rest, _turn("assistant", response)]}
    tools = problem.conversation.tools
    return row | ({"tools": tools} if tools else {})


def _turn(role: str, text: str) -> Mapping[str, str]:
    return {"role": role, "content": text}
