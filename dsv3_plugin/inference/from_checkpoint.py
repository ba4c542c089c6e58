"""Logits of given tokens and continuations of a text, from a checkpoint folder."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from dsv3_plugin.checkpoint import tracker, trained_on
from dsv3_plugin.checkpoint.conversion.tokenizer_files import end_ids
from dsv3_plugin.checkpoint.load import load_for_inference
from dsv3_plugin.data.chat.conversation import Conversation
from dsv3_plugin.data.chat.template import open_template
from dsv3_plugin.data.tokenizer import TextTokenizer, open_tokenizer
from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.generate import generate
from dsv3_plugin.inference.logits import main_logits, mtp_logits
from dsv3_plugin.inference.token_file import new_array, read_tokens, require_place
from dsv3_plugin.recipe.model import ModelConfig


def write_logits(checkpoint: Path, tokens: Path, out: Path, *, mtp: bool = False) -> None:
    """Write the FP32 logits of token ids [b, s]: [b, s, vocab], or with `mtp` [b, s, depth, vocab].

    Raises:
        UserError: the checkpoint or the token file cannot be read, the model has no MTP layers, or
            the result cannot be written.
    """
    require_place(out)
    model, config = load_for_inference(checkpoint)
    if mtp and not config.mtp_num_layers:
        raise UserError(f"{checkpoint} has no multi-token prediction layers; leave --mtp out.")
    ids = read_tokens(tokens, vocab_size=config.vocab_size, longest=config.max_position_embeddings)
    compute = mtp_logits if mtp else main_logits
    depth = (config.mtp_num_layers,) if mtp else ()
    with new_array(out, (*ids.shape, *depth, config.vocab_size)) as array:
        for row, sequence in enumerate(ids):
            array[row] = compute(model, torch.from_numpy(sequence)[None])[0].numpy()


def tokenizer_folder(checkpoint: Path) -> Path:
    """The tokenizer of a checkpoint folder, or of one of its iterations."""
    places = [checkpoint / "tokenizer", tracker.find(checkpoint).parent / "tokenizer"]
    return next((place for place in places if place.is_dir()), places[0])


def tokenizer_of_checkpoint(checkpoint: Path) -> TextTokenizer:
    """The tokenizer that a model was trained with, from beside its checkpoint.

    Raises:
        UserError: there is none, or it is another.
    """
    folder = tokenizer_folder(checkpoint)
    trained_on.refuse_replaced_tokenizer(folder.parent)
    return open_tokenizer(folder)


def refuse_unknown_tokens(
    tokens: Iterable[int], tokenizer: TextTokenizer, config: ModelConfig
) -> None:
    """Raise UserError if a text has tokens that a model has not."""
    if max(tokens, default=0) >= config.vocab_size:
        raise UserError(
            f"{tokenizer} has more tokens than the model's {config.vocab_size}; "
            "it is another model's tokenizer."
        )


def continue_text(
    checkpoint: Path,
    prompt: str,
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    chat: bool = False,
) -> Iterator[str]:
    """The prompt, then its continuation, in pieces of whole characters (see `generate`).

    Args:
        chat: the prompt is a user's turn, and the answer alone is shown.

    Raises:
        UserError: the checkpoint or its tokenizer cannot be read, or the tokens do not fit.
    """
    tokenizer = tokenizer_of_checkpoint(checkpoint)
    model, config = load_for_inference(checkpoint)
    # With the tokenizer's own special tokens: DeepSeek's begins every text with one, and so does
    # its chat template.
    text = _asked(tokenizer, prompt) if chat else prompt
    tokens = tokenizer.backend.encode(text, add_special_tokens=not chat).ids
    refuse_unknown_tokens(tokens, tokenizer, config)
    tokens_after = generate(
        model,
        tokens,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=end_ids(tokenizer.folder, tokenizer.eos_id),
    )
    if not chat:
        yield prompt
    new: list[int] = []
    shown = ""
    for token in tokens_after:
        new.append(token)
        text = tokenizer.decode(new)
        # A character of several bytes ends in this mark until its last token is there.
        if not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
    yield tokenizer.decode(new)[len(shown) :]


def _asked(tokenizer: TextTokenizer, question: str) -> str:
    """The text in which a user asks a model."""
    template = open_template(tokenizer.folder, None, {}, "all")
    turn = {"role": "user", "content": question}
    return template.prompt(Conversation([turn]), "the prompt")
