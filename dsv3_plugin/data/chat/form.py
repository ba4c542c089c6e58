"""Rows that hold conversations: what a template makes of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dsv3_plugin.data.chat.conversation import RESPONSES, conversation_of
from dsv3_plugin.data.chat.template import TEMPLATE_FILE, ChatTemplate
from dsv3_plugin.data.forms import Content, named, unicode_text
from dsv3_plugin.errors import UserError

_READ = ("messages", "tools", "system", "prompt", *RESPONSES)


@dataclass(frozen=True)
class ChatForm:
    """Conversations, or prompts and responses, as a template writes them."""

    template: ChatTemplate
    keys = ("messages", "prompt")
    reads_text = False

    @property
    def settings(self) -> dict[str, str]:
        return {"text_key": "", "template": self.template.digest}

    @property
    def tokenizer_files(self) -> dict[str, str]:
        """The template: a model is to be asked as it was trained."""
        return {TEMPLATE_FILE: self.template.source}

    def columns(self, names: Sequence[str], where: str) -> list[str]:
        """Those of a conversation, or of a prompt and its response."""
        if not any(key in names for key in self.keys):
            raise UserError(
                f'{where} has neither a column "messages" nor "prompt" and "response" (its '
                f"columns: {named(names)})."
            )
        return [name for name in _READ if name in names]

    def content(self, row: Any, where: str) -> Content:
        """The text of a row's conversation, of which the assistant's turns are learned."""
        if isinstance(row, dict):  # columns that a row leaves empty
            row = {key: value for key, value in row.items() if value is not None}
        rendered = self.template.render(conversation_of(row, where), where)
        return Content(unicode_text(rendered.text, where), rendered.spans)
