"""Prompts to answer, from files of JSON lines:

    {"prompt": "What is 6 times 7?", "answer": "42", "rewards": ["accuracy"], "system": "…"}
    {"messages": [{"role": "user", "content": "…"}, …], "tools": […], "answer": …}

`answer` is what a reward compares with: text, a number, or the tests of a program. `rewards` (or
`reward`) names those by which answers are judged, where they are not those of all prompts.
Whatever else a row has is kept for the rewards.
"""

import hashlib
import json
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dsv3_plugin.data.chat.conversation import Conversation, tools_of, turns_in_order
from dsv3_plugin.data.documents import SKIP
from dsv3_plugin.data.forms import unicode_text
from dsv3_plugin.data.json_lines import json_lines
from dsv3_plugin.data.left_out import CANNOT_BE_READ, ROWS, Tally
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.named import named
from dsv3_plugin.recipe.sections import OnBadRow

PROMPTS = "prompts"
"""What is left out of a file of them."""


@dataclass(frozen=True)
class Prompt:
    """What is to be answered, and by what answers are judged.

    Attributes:
        conversation: turns, the last of them a user's or a tool's.
        expected: the reference answer; None where there is none.
        rewards: names.
        row: all of it.
        where: file and line.
    """

    conversation: Conversation
    expected: Any
    rewards: tuple[str, ...]
    row: Mapping[str, Any]
    where: str

    @cached_property
    def key(self) -> str:
        """Fingerprint of what is asked: prompts of the same turns are the same prompt."""
        asked = [self.conversation.messages, self.conversation.tools]
        text = json.dumps(asked, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def system(self) -> str | None:
        """The system prompt, if it has one."""
        first = self.conversation.messages[0]
        return first["content"] if first["role"] in ("system", "developer") else None


@dataclass(frozen=True)
class RewardNames:
    """Which rewards prompts may name.

    Attributes:
        known: all of them.
        of_all: those of a prompt that names none.
        comparing: those that need an answer to compare with.
    """

    known: Collection[str]
    of_all: Sequence[str]
    comparing: Collection[str] = ()


def read_prompts(
    paths: Iterable[str | Path],
    rewards: RewardNames,
    *,
    on_bad_row: OnBadRow = "stop",
    left_out: Tally | None = None,
) -> Iterator[Prompt]:
    """Prompts in their order, each once.

    Prompts that were there before, and those without the answer that one of their rewards compares
    with, are left out.

    Args:
        paths: files of JSON lines, compressed or not.
        rewards: that they may name.
        on_bad_row: `skip` leaves out rows that cannot be read, too.
        left_out: counts what is left out.

    Raises:
        UserError: naming the file and line that cannot be read, or where no prompt is left.
    """
    left_out = Tally() if left_out is None else left_out
    seen: dict[str, tuple[str, Any]] = {}
    any_left = False
    files = [named(path) for path in paths]
    for row in (row for path in files for row in _rows(path, rewards)):
        if isinstance(row, UserError):
            if on_bad_row == "stop":
                raise UserError(f"{str(row).rstrip('.')}; {SKIP}.")
            left_out.add(ROWS, CANNOT_BE_READ, str(row).rstrip("."))
            continue
        first, answer = seen.setdefault(row.key, (row.where, row.expected))
        if first != row.where:
            same = "asked before" if answer == row.expected else "asked before, answered otherwise"
            left_out.add(PROMPTS, same, f"{row.where} as {first}")
        elif row.expected is None and any(name in rewards.comparing for name in row.rewards):
            left_out.add(PROMPTS, 'without an "answer" to compare with', row.where)
        else:
            any_left = True
            yield row
    if not any_left:
        why = f": {left_out}" if left_out.all() else ""
        raise UserError(f"{' and '.join(map(str, files))} holds no prompts to answer{why}.")


def _rows(path: Path, rewards: RewardNames) -> Iterator[Prompt | UserError]:
    try:
        for number, row in json_lines(path):
            where = f"{path} line {number}"
            try:
                yield row if isinstance(row, UserError) else prompt_of(row, where, rewards)
            except UserError as error:
                yield error
    except UserError as error:
        yield error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"the prompts {path} cannot be read: {getattr(error, 'strerror', None) or error}."
        ) from error


def prompt_of(row: Any, where: str, rewards: RewardNames) -> Prompt:
    """The prompt of a row.

    Raises:
        UserError: the row is none, or names a reward that there is not.
    """
    if not isinstance(row, dict):
        raise UserError(f'{where} is not a JSON object with a "prompt" or "messages".')
    row = {key: value for key, value in row.items() if value is not None}
    turns = turns_in_order(_turns(row, where), where)
    unicode_text(json.dumps(turns, ensure_ascii=False), f"{where}: what it says")
    if turns[-1]["role"] not in ("user", "tool"):
        raise UserError(f"{where} ends with a turn of {turns[-1]['role']}: end it with a user's.")
    return Prompt(
        conversation=Conversation(turns, tools_of(row.get("tools"), where)),
        expected=row.get("answer"),
        rewards=_rewards(row, where, rewards),
        row=row,
        where=where,
    )


def _turns(row: Mapping[str, Any], where: str) -> list[Any]:
    if "messages" in row:
        if not isinstance(row["messages"], list) or not row["messages"]:
            raise UserError(f'{where}: "messages" is not a list of turns.')
        return row["messages"]
    if "prompt" not in row:
        keys = ", ".join(sorted(map(str, row))[:8]) or "none"
        raise UserError(f'{where} has neither "prompt" nor "messages" (its keys: {keys}).')
    turns = [("system", row["system"])] if "system" in row else []
    turns.append(("user", row["prompt"]))
    for role, text in turns:
        if not isinstance(text, str):
            raise UserError(f"{where}: the {role}'s text is not text but {type(text).__name__}.")
        if not text.strip():
            raise UserError(f"{where}: the {role}'s text is empty.")
    return [{"role": role, "content": text} for role, text in turns]


def _rewards(row: Mapping[str, Any], where: str, rewards: RewardNames) -> tuple[str, ...]:
    names = row.get("rewards", row.get("reward", rewards.of_all))
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise UserError(f'{where}: "rewards" is not a list of names.')
    if not names:
        raise UserError(f'{where}: "rewards" names none, so its answers could not be judged.')
    unknown = [name for name in names if name not in rewards.known]
    if unknown:
        raise UserError(
            f"{where} names the reward '{unknown[0]}', which there is not: take one of "
            f"{', '.join(rewards.known)}."
        )
    return tuple(dict.fromkeys(names))
