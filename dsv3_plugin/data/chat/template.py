"""The chat template: conversations as text, and which of it the assistant has said.

A template is the tokenizer's own, in Jinja, and transformers renders it (in a sandbox), so that a
conversation is trained on exactly as `apply_chat_template` writes it when the model is used. What
an assistant has said is told by the template where it marks that (`{% generation %}`), and else by
the text that one turn more adds: from the end of the prompt that asks for the turn to the end of
the turn, with the token that ends it.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from dsv3_plugin.data.chat.conversation import Conversation
from dsv3_plugin.data.forms import Content, Span
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.full_disk import reason
from dsv3_plugin.files.json_text import read_plain
from dsv3_plugin.files.links import inside

Turns = Literal["all", "last"]
TEMPLATE_FILE = "chat_template.jinja"

_MARKS_TURNS = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class ChatTemplate:
    """A template with all that it is told.

    Attributes:
        source: in Jinja.
        special_tokens: by the names that templates know them by (`bos_token`, …).
        arguments: what the recipe tells it (`thinking: true`).
        turns: which turns of an assistant are learned.
    """

    source: str
    special_tokens: Mapping[str, Any]
    arguments: Mapping[str, Any]
    turns: Turns = "all"

    @cached_property
    def digest(self) -> str:
        """Fingerprint of all that decides how a conversation becomes text."""
        told = [self.source, dict(self.special_tokens), dict(self.arguments), self.turns]
        state = json.dumps(told, sort_keys=True, default=str)
        return hashlib.blake2b(state.encode(), digest_size=16).hexdigest()

    def render(self, conversation: Conversation, where: str) -> Content:
        """The text of a conversation, and what of it is learned.

        Raises:
            UserError: the template fails, or does not tell turns apart.
        """
        if _MARKS_TURNS.search(self.source):
            text, spans = self._apply(conversation, where, marked=True)
            spans = tuple((start, end) for start, end in spans if end > start)
            if self.turns == "last":  # which a template may mark in pieces
                spans = spans[self._marked_before_the_last(conversation, where) :]
        else:
            text, _ = self._apply(conversation, where)
            spans = self._by_prompts(conversation, text, where)
        self._refuse_lost_tools(conversation, text, where)
        if not spans:
            raise UserError(f"{where}: the chat template writes nothing of the assistant's turns.")
        return Content(text, spans)

    def prompt(self, conversation: Conversation, where: str) -> str:
        """The text that an assistant is to answer.

        Raises:
            UserError: the template fails.
        """
        return self._apply(conversation, where, add_generation_prompt=True)[0]

    def ending(self) -> str:
        """What is written behind the last turn of an assistant, by which it ends.

        Empty where that cannot be told: the template knows no such conversation, or changes what
        the assistant has said.
        """
        said = "answer"
        turns = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": said}]
        try:
            text, _ = self._apply(Conversation(turns), "an example")
        except UserError:
            return ""
        _, found, after = text.rpartition(said)
        return after if found else ""

    def _marked_before_the_last(self, conversation: Conversation, where: str) -> int:
        """Pieces that are marked before the last turn of an assistant."""
        turns = conversation.assistant_turns[-1]
        before = Conversation(conversation.messages[:turns], conversation.tools)
        if not before.assistant_turns:
            return 0
        _, spans = self._apply(before, where, marked=True)
        return sum(end > start for start, end in spans)

    def _refuse_lost_tools(self, conversation: Conversation, text: str, where: str) -> None:
        """Look whether a template writes the tools and the calls of them that it is told."""
        for what, without in conversation.without_tools():
            try:
                lost = self._apply(without, where)[0] == text
            except UserError:
                continue  # it needs what was taken away
            if lost:
                raise UserError(
                    f"{where}: the chat template writes nothing of its {what}: name one that does "
                    f"with data.template."
                )

    def _by_prompts(self, conversation: Conversation, text: str, where: str) -> tuple[Span, ...]:
        """Each turn of an assistant: what follows the prompt that asks for it."""
        places = conversation.assistant_turns
        spans = []
        for place in places[-1:] if self.turns == "last" else places:
            asked = self._begin(conversation, place, where, add_generation_prompt=True)
            if place + 1 == len(conversation.messages):
                answered = text
            else:
                answered = self._begin(conversation, place + 1, where)
            if not answered.startswith(asked):
                raise UserError(
                    f"{where}: the chat template begins an answer otherwise when it asks for one "
                    f"than when it writes one, so what the assistant has said cannot be told: mark "
                    f"it with {{% generation %}} in the template, or name one with data.template."
                )
            if not text.startswith(answered):
                raise UserError(
                    f"{where}: the chat template writes a turn otherwise when others follow it, so "
                    "what the assistant has said cannot be told: mark it with {% generation %} in "
                    "the template, or learn the last turn alone with data.turns: last."
                )
            if len(answered) > len(asked):
                spans.append((len(asked), len(answered)))
        return tuple(spans)

    def _begin(self, conversation: Conversation, turns: int, where: str, **told: Any) -> str:
        """The text of the first turns."""
        first = Conversation(conversation.messages[:turns], conversation.tools)
        return self._apply(first, where, **told)[0]

    def _apply(
        self, conversation: Conversation, where: str, *, marked: bool = False, **told: Any
    ) -> tuple[str, Sequence[Span]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, spans = render_jinja_template(
                [conversation.messages],
                tools=conversation.tools,
                chat_template=self.source,
                return_assistant_tokens_mask=marked,
                **(dict(self.special_tokens) | dict(self.arguments) | told),
            )
        except Exception as error:  # a template raises what it likes
            raise UserError(f"{where}: the chat template fails: {error}.") from error
        return texts[0], spans[0] if marked else ()


def open_template(
    tokenizer: Path, written: Path | None, arguments: Mapping[str, Any], turns: Turns
) -> ChatTemplate:
    """The template of a tokenizer's folder, or one in a file.

    Args:
        tokenizer: a Hugging Face tokenizer folder.
        written: a file in Jinja, in place of the tokenizer's own; None: that.
        arguments: what it is told beside the conversation.
        turns: which are learned.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer, PreTrainedConfig

    loaded = AutoTokenizer.from_pretrained(
        tokenizer, config=PreTrainedConfig(), local_files_only=True, trust_remote_code=False
    )
    if written is not None:
        source = _read(written)
    else:
        try:
            source = loaded.get_chat_template()
        except ValueError as error:
            raise UserError(
                f"tokenizer {tokenizer} has no chat template: put a {TEMPLATE_FILE} into it, or "
                "name a file with data.template."
            ) from error
    return ChatTemplate(source, loaded.special_tokens_map, arguments, turns)


def _read(path: Path) -> str:
    try:
        return read_plain(inside(path.parent, path.name)).decode()
    except OSError as error:
        why = reason(error)
    except UnicodeDecodeError as error:
        why = f"it is not UTF-8 text (byte {error.object[error.start]:#x} at offset {error.start})"
    raise UserError(
        f"the chat template {path} cannot be read: {why}; name a file in Jinja with data.template."
    )
