"""Whether a server divides text into the tokens that we do."""

from concurrent.futures import Future
from typing import Any

from dsv3_plugin.data.tokenizer import TextTokenizer
from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.requests import SamplingParameters
from dsv3_plugin.rollouts.endpoint import Choice, Endpoint, choices_of, sentence_of
from dsv3_plugin.web import Unanswered

_WORDS = "The quick brown fox, 3.14 + 27 = ?\n\tdef f(x):\n        return {x: 'é'} 日本語 Ελλάς"
_SPREAD = 256
"""Tokens of the vocabulary, evenly spread, whose texts are a part of the probe."""
_ONE = SamplingParameters(max_tokens=1, temperature=0.0)


def refuse_other_tokenizer(endpoint: Endpoint, tokenizer: TextTokenizer, longest: int) -> None:
    """Have a server encode a text of many tokens, and compare; ask whether it knows the last one.

    Args:
        endpoint: the server.
        tokenizer: ours.
        longest: tokens that the server takes.

    Raises:
        UserError: its tokenizer or its vocabulary is another, or it does not tell token ids or
            log-probabilities.
    """
    text = probe(tokenizer, longest)
    choice = _answer(endpoint, endpoint.complete(text, _ONE, reported=True))
    if choice.prompt is None or choice.tokens is None or choice.log_probs is None:
        lacks = "token ids" if choice.log_probs is not None else "log-probabilities"
        raise UserError(
            f"{endpoint.address} does not tell {lacks}, which training needs: take a server that "
            "knows return_token_ids and logprobs (vLLM, SGLang, dsv3 serve)."
        )
    ours = [tuple(tokenizer.backend.encode(text, add_special_tokens=s).ids) for s in (True, False)]
    if choice.prompt not in ours:
        raise UserError(
            f"{endpoint.address} has another tokenizer than {tokenizer}: it makes "
            f"other tokens of a text ({len(choice.prompt)}, and not {len(ours[-1])}). Serve the "
            "model with its own tokenizer."
        )
    last = tokenizer.most_tokens - 1
    try:
        _answer(endpoint, endpoint.complete([last], _ONE, reported=True))
    except UserError as error:
        raise UserError(
            f"{error} It was asked for token {last}, the last of {tokenizer}: its model has "
            "another vocabulary."
        ) from None


def probe(tokenizer: TextTokenizer, longest: int) -> str:
    """A text whose division tells tokenizers apart: of words and signs, and of tokens' own."""
    step = max(tokenizer.most_tokens // _SPREAD, 1)
    spelled = (
        tokenizer.backend.decode([token], skip_special_tokens=True)
        for token in range(0, tokenizer.most_tokens, step)
    )
    whole = [text for text in spelled if text.strip() and "\ufffd" not in text]
    text = " ".join([_WORDS, *whole])
    while len(tokenizer.backend.encode(text, add_special_tokens=True).ids) >= longest:
        text = text[: len(text) // 2]
    return text


def _answer(endpoint: Endpoint, asked: "Future[Any]") -> Choice:
    try:
        (choice,) = choices_of(asked.result(), 1)
    except Unanswered as error:
        raise UserError(f"{endpoint.address} {sentence_of(error)}.") from None
    return choice
