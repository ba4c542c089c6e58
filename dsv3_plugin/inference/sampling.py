"""From logits to the next token.

Token t of answer i to prompt p with seed s is drawn with noise of (s, p, i, t) alone: the same
whatever else is computed beside it, how often it is computed again, and how far ahead of the model
it was guessed. The draw is Gumbel's: the token whose logit plus noise is greatest has exactly the
probability that the softmax gives it, and two distributions that are near draw the same token
mostly, which is what makes guesses come true (arXiv 2408.07978).
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from dsv3_plugin.inference.requests import SamplingParameters

_TINY = 1e-30
"""Below this temperature only the likeliest tokens have a probability: logits differ by far more,
or not at all, and divided by less they may be infinite."""


def shaped(logits: Tensor, sampling: SamplingParameters, seen: Sequence[int]) -> Tensor:
    """Logits of the distribution that a token is drawn from; forbidden tokens have -inf.

    Args:
        logits: FP32, [vocab], the model's.
        sampling: what is done to them, in the order that `SamplingParameters` says.
        seen: tokens of prompt and answer so far.
    """
    if sampling.repetition_penalty != 1.0 and seen:
        there = torch.tensor(sorted(set(seen)), device=logits.device)
        old, penalty = logits[there], sampling.repetition_penalty
        logits = logits.index_put((there,), torch.where(old > 0, old / penalty, old * penalty))
    if sampling.logit_bias:
        tokens = torch.tensor(list(sampling.logit_bias), device=logits.device)
        bias = torch.tensor(list(sampling.logit_bias.values()), device=logits.device)
        logits = logits.index_add(0, tokens, bias.to(logits.dtype))
    if sampling.greedy:
        return logits
    if sampling.temperature < _TINY:  # divided by it, logits might be infinite
        logits = (logits - logits.max()) / _TINY
    else:
        logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < len(logits):
        least = logits.topk(sampling.top_k).values[-1]  # all that are as likely stay, as in `top`
        logits = logits.masked_fill(logits < least, float("-inf"))
    if sampling.top_p < 1.0:
        probabilities, tokens = logits.softmax(-1).sort(descending=True, stable=True)
        before = probabilities.cumsum(-1) - probabilities
        before[0] = -1.0  # the likeliest is always kept
        logits = _only(logits, tokens[before < sampling.top_p])
    if sampling.min_p > 0.0:
        floor = logits.max() + float(np.log(sampling.min_p))
        logits = logits.masked_fill(logits < floor, float("-inf"))
    return logits


def _only(logits: Tensor, tokens: Tensor) -> Tensor:
    kept = torch.full_like(logits, float("-inf"))
    return kept.index_copy(0, tokens, logits[tokens])


def gumbel_noise(keys: Sequence[tuple[int, ...]], vocabulary: int) -> Tensor:
    """-ln(-ln u) of u uniform in (0, 1), FP32 [keys, vocabulary], the same on every machine and
    device.

    Drawn in FP64, where 0 does not come up: FP32 would have it in a hundredth of all draws from
    DeepSeek-V3's vocabulary, each time for a token that nobody expects.

    Args:
        keys: seed of the request, number of its prompt, of the answer and of the token in it.
        vocabulary: how many.
    """
    noise = np.empty((len(keys), vocabulary), dtype=np.float32)
    drawn = np.empty(vocabulary)
    for key, row in zip(keys, noise, strict=True):
        named = hashlib.blake2b(" ".join(map(str, key)).encode(), digest_size=16).digest()
        bits = np.random.Philox(key=np.frombuffer(named, dtype=np.uint64))
        np.random.Generator(bits).standard_exponential(out=drawn)
        np.negative(np.log(drawn, out=drawn), out=row, casting="same_kind")
    return torch.from_numpy(noise)


def top_log_probs(log_probs: Tensor, count: int) -> list[tuple[tuple[int, float], ...]]:
    """The likeliest tokens of each row of [rows, vocab], as (token, log-probability)."""
    if count == 0:
        return [()] * len(log_probs)
    values, tokens = log_probs.topk(min(count, log_probs.shape[-1]), dim=-1)
    pairs: Iterable = zip(tokens.tolist(), values.tolist(), strict=True)
    return [tuple(zip(*row, strict=True)) for row in pairs]
