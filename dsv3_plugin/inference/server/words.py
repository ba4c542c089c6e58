"""A tokenizer, as the server uses it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dsv3_plugin.checkpoint.conversion.tokenizer_files import end_ids
from dsv3_plugin.data.chat.conversation import Conversation
from dsv3_plugin.data.chat.template import ChatTemplate, open_template
from dsv3_plugin.data.tokenizer import TextTokenizer
from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.requests import WrongField
from dsv3_plugin.inference.server.spelling import Spelling


@dataclass(frozen=True)
class Words:
    """Text to tokens and back.

    Attributes:
        encode: token ids of a text, with those that every text begins with, or without.
        decode: text of token ids, special tokens spelled out.
        said: text of an answer, without them, as other servers tell it.
        prompt: the text that asks for a conversation's next turn.
        spelling: of single tokens.
        ends: tokens that end an answer.
    """

    encode: Callable[[str, bool], list[int]]
    decode: Callable[[Sequence[int]], str]
    said: Callable[[Sequence[int]], str]
    prompt: Callable[[Conversation], str]
    spelling: Spelling
    ends: frozenset[int]


def words_of(tokenizer: TextTokenizer) -> Words:
    """A checkpoint's tokenizer; one without a chat template says so where it is asked for one."""
    template: ChatTemplate | UserError
    try:
        template = open_template(tokenizer.folder, None, {}, "all")
    except UserError as error:
        template = error

    def prompt(conversation: Conversation) -> str:
        if isinstance(template, UserError):
            raise UserError(str(template))
        text = template.prompt(conversation, "messages")
        _require_tools_told(template, conversation, text)
        return text

    def encode(text: str, special: bool) -> list[int]:
        return tokenizer.backend.encode(text, add_special_tokens=special).ids

    def said(ids: Sequence[int]) -> str:
        return tokenizer.backend.decode(list(ids), skip_special_tokens=True)

    ends = end_ids(tokenizer.folder, tokenizer.eos_id)
    return Words(encode, tokenizer.decode, said, prompt, Spelling.of(tokenizer), ends)


def _require_tools_told(template: ChatTemplate, conversation: Conversation, text: str) -> None:
    """Look whether a template writes the tools, and the calls of them, that it is told."""
    for what, without in conversation.without_tools():
        try:
            lost = template.prompt(without, "messages") == text
        except UserError:
            continue  # it needs what was taken away
        if lost:
            raise WrongField(
                f"The model's chat template writes nothing of {what}: leave them out.",
                "tools" if what == "tools" else "messages",
            )
