"""Logits of given tokens and continuations of a text, from a checkpoint folder."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from dsv3_plugin.checkpoint.conversion.tokenizer_files import end_ids
from dsv3_plugin.checkpoint.load import load_for_inference
from dsv3_plugin.checkpoint.loadable import loadable
from dsv3_plugin.data.chat.conversation import Conversation
from dsv3_plugin.data.chat.template import open_template
from dsv3_plugin.data.tokenizer import TextTokenizer
from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.cache import CacheShape
from dsv3_plugin.inference.checkpoint_tokenizer import tokenizer_of_checkpoint
from dsv3_plugin.inference.engine import Engine, EngineSettings, Progress
from dsv3_plugin.inference.generate import require_positions
from dsv3_plugin.inference.logits import main_logits, mtp_logits
from dsv3_plugin.inference.requests import Request, SamplingParameters
from dsv3_plugin.inference.text import TextStream
from dsv3_plugin.inference.token_file import new_array, read_tokens, require_place
from dsv3_plugin.recipe.model import ModelConfig


def write_logits(
    checkpoint: Path, tokens: Path, out: Path, *, mtp: bool = False
) -> tuple[int, ...]:
    """Write the FP32 logits of token ids [b, s]: [b, s, vocab], or with `mtp` [b, s, depth, vocab].

    Returns:
        The shape of what was written.

    Raises:
        UserError: the checkpoint or the token file cannot be read, the model has no MTP layers, or
            the result cannot be written.
    """
    require_place(out, tokens)
    config = loadable(checkpoint).model  # what is wrong is said before the wait for the weights
    if mtp and not config.mtp_num_layers:
        raise UserError(f"{checkpoint} has no multi-token prediction layers; leave --mtp out.")
    ids = read_tokens(tokens, vocab_size=config.vocab_size, longest=config.max_position_embeddings)
    model, config = load_for_inference(checkpoint)
    compute = mtp_logits if mtp else main_logits
    depth = (config.mtp_num_layers,) if mtp else ()
    shape = (*ids.shape, *depth, config.vocab_size)
    with new_array(out, shape) as array:
        for row, sequence in enumerate(ids):
            array[row] = compute(model, torch.from_numpy(sequence)[None])[0].cpu().numpy()
    return shape


def refuse_unknown_tokens(
    tokens: Iterable[int], tokenizer: TextTokenizer, config: ModelConfig
) -> None:
    """Raise UserError if a text has tokens that a model has not."""
    if max(tokens, default=0) >= config.vocab_size:
        raise UserError(
            f"{tokenizer} has more tokens than the model's {config.vocab_size}; "
            "it is another model's tokenizer."
        )


def continue_texts(
    checkpoint: Path,
    prompts: Sequence[str],
    sampling: SamplingParameters,
    *,
    drafts: int = 0,
    chat: bool = False,
) -> Iterator[str]:
    """The prompts with their continuations, in pieces of whole characters.

    All are made at once. The first is shown as it grows, each of the others when those before it
    are whole, with an empty line between them.

    Args:
        checkpoint: with its tokenizer.
        prompts: texts.
        sampling: of all of them; what its tokenizer's folder says ends a text ends one too.
        drafts: tokens that multi-token prediction guesses ahead.
        chat: the prompts are users' turns, and the answers alone are shown.

    Raises:
        UserError: the checkpoint or its tokenizer cannot be read, or the tokens do not fit.
    """
    tokenizer = tokenizer_of_checkpoint(checkpoint)
    if drafts and not loadable(checkpoint).model.mtp_num_layers:
        raise UserError(f"{checkpoint} has no multi-token prediction layers; leave --drafts out.")
    model, config = load_for_inference(checkpoint)
    # With the tokenizer's own special tokens: DeepSeek's begins every text with one, and so does
    # its chat template.
    texts = [_asked(tokenizer, prompt) for prompt in prompts] if chat else prompts
    tokens = [tokenizer.backend.encode(text, add_special_tokens=not chat).ids for text in texts]
    for of_prompt in tokens:
        refuse_unknown_tokens(of_prompt, tokenizer, config)
        require_positions(model, len(of_prompt), sampling.max_tokens)
    ends = end_ids(tokenizer.folder, tokenizer.eos_id)
    sampling = replace(sampling, stop_tokens=sampling.stop_tokens | ends)
    shape = CacheShape.of(model.config, predictors=config.mtp_num_layers if drafts else 0)
    lengths = [len(of_prompt) + sampling.max_tokens + 2 * drafts for of_prompt in tokens]
    settings = EngineSettings(shape.bytes_for(lengths * sampling.n), drafts=drafts)
    engine = Engine(model, settings, text_of=tokenizer.decode)
    growing = _Growing(tokenizer, sampling)
    requests = [Request(tuple(ids), sampling, number=place) for place, ids in enumerate(tokens)]
    for prompt, number in zip(prompts, engine.add_all(requests), strict=True):
        growing.expect(number, "" if chat else prompt)
    while engine.busy:
        for progress in engine.step():
            growing.add(progress)
        yield from growing.pieces()


class _Growing:
    """Texts that grow side by side, to be shown one after another."""

    def __init__(self, tokenizer: TextTokenizer, sampling: SamplingParameters) -> None:
        self._tokenizer, self._sampling = tokenizer, sampling
        self._streams: dict[tuple[int, int], TextStream] = {}
        self._waiting: dict[tuple[int, int], list[str]] = {}
        self._whole: set[tuple[int, int]] = set()

    def expect(self, request: int, beginning: str) -> None:
        """All answers to a request, each shown behind its beginning."""
        for number in range(self._sampling.n):
            self._streams[request, number] = TextStream(
                self._tokenizer.decode, self._sampling.stop, self._sampling.stop_tokens
            )
            self._waiting[request, number] = [beginning]

    def add(self, progress: Progress) -> None:
        """What a step brought."""
        which = progress.request, progress.number
        stream, waiting = self._streams[which], self._waiting[which]
        waiting.append(stream.add([report.token for report in progress.reports]))
        if progress.completion is not None:
            waiting.append(stream.end())
            self._whole.add(which)

    def pieces(self) -> Iterator[str]:
        """What can be shown now."""
        while self._waiting:
            first = next(iter(self._waiting))
            yield from filter(None, self._waiting[first])
            self._waiting[first].clear()
            if first not in self._whole:
                return
            del self._waiting[first]
            if self._waiting:
                yield "\n\n"


def _asked(tokenizer: TextTokenizer, question: str) -> str:
    """The text in which a user asks a model."""
    template = open_template(tokenizer.folder, None, {}, "all")
    turn = {"role": "user", "content": question}
    return template.prompt(Conversation([turn]), "the prompt")
