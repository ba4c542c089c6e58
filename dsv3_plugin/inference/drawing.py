"""The next tokens of many answers, and what is reported of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor

from dsv3_plugin.inference.forward import logits
from dsv3_plugin.inference.requests import SamplingParameters, TokenReport
from dsv3_plugin.inference.sampling import gumbel_noise, shaped, top_log_probs

ROWS_OF_LOGITS = 128
"""Logits that are there at once: 66 MB of FP32 with DeepSeek-V3's vocabulary, and as much for each
of a few intermediate results, beside the cache's budget."""


@dataclass(frozen=True)
class Place:
    """Where a token is to be drawn.

    Attributes:
        sampling: of the request.
        which: number of the prompt, of the answer to it, and of the token in that.
        text: tokens before it, prompt included.
        ahead: tokens behind those that are taken to be right.
    """

    sampling: SamplingParameters
    which: tuple[int, int, int]
    text: Sequence[int]
    ahead: Sequence[int] = ()


def formed_logits(places: Sequence[Place], expected: Tensor) -> Tensor:
    """Logits [places, vocab] of what tokens are drawn from.

    Args:
        places: of the tokens.
        expected: FP32 logits of the model, [places, vocab].
    """
    if all(place.sampling.plain and place.sampling.greedy for place in places):
        return expected
    rows = []
    for place, row in zip(places, expected, strict=True):
        remembers = place.sampling.repetition_penalty != 1.0
        seen = [*place.text, *place.ahead] if remembers else ()
        rows.append(shaped(row, place.sampling, seen))
    return torch.stack(rows)


def drawn_tokens(places: Sequence[Place], formed: Tensor) -> list[int]:
    """A token of each row: the likeliest, of the logits themselves or with Gumbel's noise added."""
    rows = [row for row, place in enumerate(places) if not place.sampling.greedy]
    if rows:
        keys = [(places[row].sampling.seed, *places[row].which) for row in rows]
        noise = gumbel_noise(keys, formed.shape[-1])
        where = torch.tensor(rows, device=formed.device)
        formed = formed.index_add(0, where, noise.to(formed.device))
    return formed.argmax(-1).tolist()


def drawn_reports(
    head: GPTModel, places: Sequence[Place], hidden: Tensor, version: int
) -> list[TokenReport]:
    """Tokens of places, and what is known of them.

    Args:
        head: the end of the model.
        places: of the tokens.
        hidden: the model's states [places, h] before them.
        version: of the weights.
    """
    reports: list[TokenReport] = []
    for begin in range(0, len(places), ROWS_OF_LOGITS):
        some = slice(begin, begin + ROWS_OF_LOGITS)
        expected = logits(head, hidden[some])
        formed = formed_logits(places[some], expected)
        tokens = drawn_tokens(places[some], formed)
        sampling = [place.sampling for place in places[some]]
        reports += reports_of(tokens, expected, sampling, formed, version)
    return reports


def given_reports(
    head: GPTModel,
    tokens: Sequence[int],
    sampling: SamplingParameters,
    hidden: Tensor,
    version: int,
) -> list[TokenReport]:
    """What is known of a prompt's tokens, from the model's states [tokens or more, h] before
    them."""
    reports: list[TokenReport] = []
    for begin in range(0, len(tokens), ROWS_OF_LOGITS):
        some = slice(begin, begin + ROWS_OF_LOGITS)
        expected = logits(head, hidden[some][: len(tokens) - begin])
        whose = [sampling] * len(expected)
        reports += reports_of(tokens[some], expected, whose, None, version)
    return reports


def reports_of(
    tokens: Sequence[int],
    expected: Tensor,
    sampling: Sequence[SamplingParameters],
    formed: Tensor | None,
    version: int,
) -> list[TokenReport]:
    """What is known of tokens.

    Args:
        tokens: one for each row.
        expected: FP32 logits of the model, [rows, vocab].
        sampling: of each row's request.
        formed: logits that the tokens were drawn from; None for a prompt's.
        version: of the weights.
    """
    picked = torch.tensor(tokens, device=expected.device)[:, None]
    log_probs = expected.log_softmax(-1)
    own = log_probs.gather(1, picked)[:, 0].tolist()
    after: list[float | None] = [None] * len(tokens)
    if formed is not None:
        after = [0.0] * len(tokens)
        if not all(row.greedy for row in sampling):
            values = formed.log_softmax(-1).gather(1, picked)[:, 0].tolist()
            after = [0.0 if s.greedy else v for s, v in zip(sampling, values, strict=True)]
    top = top_log_probs(log_probs, max(row.top_log_probs for row in sampling))
    return [
        TokenReport(token, own[row], after[row], top[row][: sampling[row].top_log_probs], version)
        for row, token in enumerate(tokens)
    ]
