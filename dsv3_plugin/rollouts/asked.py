"""Prompts as a model is asked them: the text of its chat template, and the tokens of that."""

from collections.abc import Iterable
from dataclasses import dataclass

from dsv3_plugin.data.chat.template import ChatTemplate
from dsv3_plugin.data.left_out import Tally
from dsv3_plugin.data.tokenizer import TextTokenizer
from dsv3_plugin.errors import UserError
from dsv3_plugin.rollouts.prompts import PROMPTS, Prompt

_THINK = "<think>"


@dataclass(frozen=True)
class Asked:
    """A prompt of a model.

    Attributes:
        prompt: what is asked.
        text: with its template.
        tokens: of that, without any that the tokenizer would add.
        opened: what the template has begun the answer with.
    """

    prompt: Prompt
    text: str
    tokens: tuple[int, ...]
    opened: str


def asked_by(
    prompts: Iterable[Prompt],
    tokenizer: TextTokenizer,
    template: ChatTemplate,
    longest: int,
    left_out: Tally,
) -> list[Asked]:
    """The prompts that are short enough.

    Args:
        prompts: in their order.
        tokenizer, template: of the model.
        longest: tokens of a prompt.
        left_out: counts longer ones.

    Raises:
        UserError: the template fails, or nothing is left.
    """
    found = []
    for prompt in prompts:
        text = template.prompt(prompt.conversation, prompt.where)
        tokens = tuple(tokenizer.backend.encode(text, add_special_tokens=False).ids)
        if len(tokens) > longest:
            left_out.add(PROMPTS, f"longer than {longest} tokens", prompt.where)
            continue
        found.append(Asked(prompt, text, tokens, opened_by(text)))
    if not found:
        raise UserError(
            f"no prompt has {longest} tokens or less: raise rollouts.max_prompt_tokens."
        )
    return found


def opened_by(text: str) -> str:
    """The end of a prompt by which a template begins thoughts."""
    return text[text.rindex(_THINK) :] if text.rstrip().endswith(_THINK) else ""
