"""Text, one token at a time: keys and values are cached, the next token is sampled.

The cache is upstream's static one and holds whole keys and values per layer.
"""

from collections.abc import Iterator, Sequence

import torch
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor

from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.logits import head, positions


def generate(
    model: GPTModel,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: int | None = None,
) -> Iterator[int]:
    """Continue a text. What is wrong is said here, before the first token is asked for.

    Args:
        model: a whole model (all layers on this process).
        prompt: token ids, at least one.
        max_new_tokens: how many tokens to yield at most.
        temperature: divides the logits before sampling; 0 takes the likeliest token.
        top_p: sample from the smallest set of tokens whose probabilities sum to this.
        seed: of the sampling.
        stop: a token that ends the text; it is not yielded.

    Raises:
        UserError: the prompt is empty, or prompt and new tokens exceed the model's positions.
    """
    if not prompt:
        raise UserError("The prompt has no tokens; write at least a word.")
    length = len(prompt) + max_new_tokens
    if length > model.max_sequence_length:
        raise UserError(
            f"{len(prompt)} tokens of prompt and {max_new_tokens} new ones exceed the model's "
            f"{model.max_sequence_length} positions: shorten the prompt or --max-new-tokens."
        )
    return _continue(
        model,
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=stop,
    )


@torch.no_grad()
def _continue(
    model: GPTModel,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    stop: int | None,
) -> Iterator[int]:
    model.eval()
    length = len(prompt) + max_new_tokens
    device = next(model.parameters()).device
    draw = torch.Generator(device).manual_seed(seed)
    cache = StaticInferenceContext(max_batch_size=1, max_sequence_length=length)
    unseen = torch.tensor([list(prompt)], device=device)
    for _ in range(max_new_tokens):
        embedded = model.embedding(input_ids=unseen, position_ids=positions(unseen))
        hidden = model.decoder(hidden_states=embedded, attention_mask=None, inference_context=cache)
        cache.increment_sequence_len_offset(unseen.shape[1])
        token = sample(head(model, hidden[-1:])[0, 0], temperature, top_p, draw)
        if token == stop:
            return
        yield token
        unseen = torch.tensor([[token]], device=device)


def sample(logits: Tensor, temperature: float, top_p: float, draw: torch.Generator) -> int:
    """One token from logits [vocab] (nucleus sampling, arXiv 1904.09751); see `generate`."""
    if temperature == 0.0:
        return int(logits.argmax())
    probabilities, tokens = (logits / temperature).softmax(-1).sort(descending=True)
    before = probabilities.cumsum(-1) - probabilities
    probabilities[1:][before[1:] >= top_p] = 0.0  # the likeliest token is always kept
    return int(tokens[torch.multinomial(probabilities, 1, generator=draw)])
