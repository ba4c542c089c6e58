"""A row of instruction data: a conversation, or a prompt and the response to it.

Two forms are read, as datasets on the Hugging Face hub have them:

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}, …],
     "tools": […]}
    {"prompt": "…", "response": "…", "system": "…"}          `completion` is a response, too

Turns come in the order in which a model will see them: a system prompt at most first, then users
and assistants by turns, where an assistant that calls tools is answered by them. The last turn is
an assistant's: what would follow it is not learned.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dsv3_plugin.errors import UserError

_SYSTEM = ("system", "developer")
_MAY_FOLLOW = {
    "user": ("", *_SYSTEM, "assistant"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
    **dict.fromkeys(_SYSTEM, ("",)),
}
"""Role → the roles that it may follow; "" is the beginning."""

ROLES = tuple(_MAY_FOLLOW)
"""Who may speak in a conversation."""

RESPONSES = ("response", "completion")


@dataclass(frozen=True)
class Conversation:
    """Turns and what a template is told beside them.

    Attributes:
        messages: mappings with a `role`, mostly a `content`, and whatever else a template knows.
        tools: JSON schemas of the functions that an assistant may call.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None

    @property
    def assistant_turns(self) -> list[int]:
        """The places of the assistant's turns among the messages."""
        return [n for n, message in enumerate(self.messages) if message["role"] == "assistant"]

    def without_tools(self) -> Iterator[tuple[str, "Conversation"]]:
        """What it has of tools, in words, each with the conversation that lacks it."""
        if self.tools:
            yield "tools", Conversation(self.messages)
        if any(message.get("tool_calls") for message in self.messages):
            turns = [
                {"content": ""} | {key: value for key, value in m.items() if key != "tool_calls"}
                for m in self.messages
            ]
            yield "tool calls", Conversation(turns, self.tools)


def conversation_of(row: Any, where: str) -> Conversation:
    """The conversation of a row.

    Args:
        row: a value of JSON.
        where: what errors call it: its file, and its line or row.

    Raises:
        UserError: the row is none.
    """
    if not isinstance(row, dict):
        raise UserError(f"{where} is not a JSON object with messages, or a prompt and a response.")
    if "messages" in row:
        messages = row["messages"]
        if not isinstance(messages, list) or not messages:
            raise UserError(f'{where}: "messages" is not a list of turns.')
    else:
        messages = _of_pair(row, where)
    messages = turns_in_order(messages, where)
    if not any(message["role"] == "assistant" for message in messages):
        raise UserError(f"{where} has no turn of an assistant, so nothing to learn.")
    if (last := messages[-1]["role"]) != "assistant":
        raise UserError(f"{where} ends with a turn of {last}: end it with the assistant's.")
    return Conversation(messages, tools_of(row.get("tools"), where))


def turns_in_order(messages: list[Any], where: str) -> list[dict[str, Any]]:
    """Turns of a row, each of a known role and where it may stand.

    Raises:
        UserError: one is not.
    """
    # Keys without a value are none to a template (as to transformers); a table has many of them.
    messages = [_without_empty(message) for message in messages]
    before = ""
    for number, message in enumerate(messages, start=1):
        before = _role(message, before, f"{where}: turn {number}")
    return messages


def _without_empty(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    return {key: value for key, value in message.items() if value is not None}


def _of_pair(row: dict[str, Any], where: str) -> list[dict[str, Any]]:
    response = next((key for key in RESPONSES if key in row), None)
    if "prompt" not in row or response is None:
        keys = ", ".join(sorted(map(str, row))[:8]) or "none"
        raise UserError(
            f'{where} has neither "messages" nor "prompt" and "response" (its keys: {keys}).'
        )
    turns = [("user", row["prompt"]), ("assistant", row[response])]
    if row.get("system") is not None:
        turns.insert(0, ("system", row["system"]))
    for role, text in turns:
        if not isinstance(text, str):
            what = type(text).__name__
            raise UserError(f"{where}: the {role}'s text is not text but {what}.")
    return [{"role": role, "content": text} for role, text in turns]


def _role(message: Any, before: str, where: str) -> str:
    """The role of a turn that follows one of the role `before`."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise UserError(f'{where} is not an object with a "role".')
    role = message["role"]
    if role not in _MAY_FOLLOW:
        raise UserError(f"{where} has the role {role!r}: take one of {', '.join(ROLES)}.")
    if before not in _MAY_FOLLOW[role]:
        after = f"after {before}" if before else "at the beginning"
        raise UserError(f"{where}: {role} {after} is out of order.")
    content = message.get("content")
    calls = role == "assistant" and message.get("tool_calls")
    if not isinstance(content, str | list) and not (content is None and calls):
        raise UserError(f'{where} has no "content".')
    return role


def tools_of(tools: Any, where: str) -> list[dict[str, Any]] | None:
    """What a row says of tools; None where it has none.

    Raises:
        UserError: it is no list of schemas.
    """
    if tools is None or tools == []:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UserError(f'{where}: "tools" is not a list of JSON schemas.')
    return tools
