"""Answers by a server elsewhere, which speaks OpenAI's language.

What comes is what an engine of ours gives: token ids, their log-probabilities, why an answer ended,
and the version of the weights. A server that is killed and started again in the middle is waited
for; answers that it made with other weights than it was given are not kept.
"""

import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Protocol

from dsv3_plugin.data.tokenizer import TextTokenizer
from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.requests import SamplingParameters
from dsv3_plugin.rollouts.endpoint import Choice, Endpoint, choices_of, sentence_of
from dsv3_plugin.rollouts.rollout import Rollout
from dsv3_plugin.rollouts.same_tokenizer import refuse_other_tokenizer
from dsv3_plugin.web import Unanswered


class Tokens(Protocol):
    """A prompt, as it is asked."""

    @property
    def tokens(self) -> tuple[int, ...]: ...


class OpenAi:
    """Answers of a server.

    Args:
        endpoint: the server, which is the caller's to close.
        sampling: how answers are drawn. At temperature 1 and without limits to what is drawn,
            log-probabilities are of the distribution that tokens are drawn from.
        tokenizer: of the model that is trained.
        vocabulary: tokens of that model.
        longest: tokens that the server takes.
        ends: tokens that end an answer; what a server writes behind one is cut off.

    Attributes:
        version: of the weights that the server was given, from 0.
        lost: answers that did not come, by the reason.

    Raises:
        UserError: the server has another tokenizer or vocabulary, or does not tell what is needed.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        sampling: SamplingParameters,
        tokenizer: TextTokenizer,
        vocabulary: int,
        longest: int,
        ends: frozenset[int],
    ) -> None:
        self.endpoint, self.version = endpoint, 0
        self.lost: Counter[str] = Counter()
        self._sampling, self._ends = sampling, ends
        self._vocabulary = vocabulary
        refuse_other_tokenizer(endpoint, tokenizer, longest)

    def answers(self, asked: Sequence[Tokens], n: int, seeds: Sequence[int]) -> list[list[Rollout]]:
        """n answers to each prompt, or fewer where the server fails at some.

        Args:
            asked: the prompts.
            n: answers to each.
            seeds: of each prompt's answers.

        Raises:
            UserError: not one answer came.
        """
        futures = [
            self.endpoint.complete(
                list(one.tokens), replace(self._sampling, n=n, seed=seed), reported=True
            )
            for one, seed in zip(asked, seeds, strict=True)
        ]
        problems: list[Unanswered] = []
        groups = [
            self._group(one.tokens, future, n, problems)
            for one, future in zip(asked, futures, strict=True)
        ]
        if problems and not any(groups):
            raise UserError(f"{self.endpoint.address} {sentence_of(problems[0])}: no answer came.")
        return groups

    def _group(
        self, prompt: tuple[int, ...], future: "Future[Any]", n: int, problems: list[Unanswered]
    ) -> list[Rollout]:
        try:
            choices = choices_of(future.result(), n)
        except Unanswered as error:
            problems.append(error)
            self.lost[sentence_of(error)] += n
            return []
        found = [self._rollout(prompt, choice) for choice in choices]
        return [rollout for rollout in found if rollout is not None]

    def _rollout(self, prompt: tuple[int, ...], choice: Choice) -> Rollout | None:
        tokens, values = choice.tokens, choice.log_probs
        if not tokens or values is None or len(tokens) != len(values):
            self.lost["came without token ids or log-probabilities"] += 1
            return None
        if not all(map(math.isfinite, values)):
            self.lost["came with log-probabilities that are no numbers"] += 1
            return None
        if choice.prompt is not None and choice.prompt != prompt:
            raise UserError(
                f"{self.endpoint.address} answers another prompt than it was asked: it does not "
                "take token ids as they are."
            )
        if not all(0 <= token < self._vocabulary for token in tokens):
            raise UserError(
                f"{self.endpoint.address} answers with token {max(tokens)}, which is none of the "
                f"{self._vocabulary} of the model in training: it serves another model."
            )
        reason = choice.finish_reason
        end = next((n for n, token in enumerate(tokens, start=1) if token in self._ends), None)
        if end is not None:
            tokens, values, reason = tokens[:end], values[:end], "stop"
        return Rollout(prompt, tokens, values, reason, (self.version,) * len(tokens))
