"""Answers by a server elsewhere, which speaks OpenAI's language.

What comes is what an engine of ours gives: token ids, their log-probabilities, why an answer ended,
and the version of the weights. A server that is killed and started again in the middle is waited
for; answers that it made with other weights than it was given are not kept.
"""

import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from dsv3_plugin.data.tokenizer import TextTokenizer
from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.requests import SamplingParameters
from dsv3_plugin.rollouts.endpoint import (
    Choice,
    Endpoint,
    Update,
    choices_of,
    sentence_of,
)
from dsv3_plugin.rollouts.rollout import Rollout
from dsv3_plugin.rollouts.routing import Routing
from dsv3_plugin.rollouts.same_tokenizer import refuse_other_tokenizer
from dsv3_plugin.web import Unanswered


class Tokens(Protocol):
    """A prompt, as it is asked."""

    @property
    def tokens(self) -> tuple[int, ...]: ...


_ROUNDS = 4
"""A server is started again now and then, and not during each of four rounds of answers."""


@dataclass(frozen=True)
class _Given:
    """Weights that a server was given, how, and its own number of them."""

    folder: str
    by: Update
    number: int | None


class OpenAi:
    """Answers of a server.

    Args:
        endpoint: the server, which is the caller's to close.
        sampling: how answers are drawn: without limits to what is drawn.
        tokenizer: of the model that is trained.
        vocabulary: tokens of that model.
        longest: tokens that the server takes.
        ends: tokens that end an answer; what a server writes behind one is cut off.
        routing: of the model in training, where answers are wanted with the experts that their
            tokens went to.

    Attributes:
        version: of the weights that the server was given, from 0.
        made_again: answers of other weights than those, which were asked for again.
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
        routing: Routing | None = None,
    ) -> None:
        self.endpoint, self.version = endpoint, 0
        self.made_again = 0
        self._given: _Given | None = None
        self.lost: Counter[str] = Counter()
        self._sampling, self._ends = sampling, ends
        self._vocabulary, self._routing = vocabulary, routing
        refuse_other_tokenizer(endpoint, tokenizer, longest)

    def hand_on(self, folder: str, by: Update = "weights") -> None:
        """Have the server go on with the weights in a folder, which are those of the next version.

        Raises:
            UserError: it does not take them.
        """
        self._given = _Given(folder, by, self.endpoint.take_weights(folder, by))
        self.version += 1

    def answers(self, asked: Sequence[Tokens], n: int, seeds: Sequence[int]) -> list[list[Rollout]]:
        """n answers to each prompt, or fewer where the server fails at some.

        A server that was started again has the weights that it began with: it is given those of
        this version once more, and what it has answered with others is asked again.

        Args:
            asked: the prompts.
            n: answers to each.
            seeds: of each prompt's answers.

        Raises:
            UserError: not one answer came, or the server does not keep the weights it is given.
        """
        groups: list[list[Rollout]] = [[] for _ in asked]
        left = list(range(len(asked)))
        for _ in range(_ROUNDS):
            found = self._asked([asked[i] for i in left], n, [seeds[i] for i in left])
            groups_of = dict(zip(left, found, strict=True))
            left = [i for i, group in groups_of.items() if group is None]
            for place, group in groups_of.items():
                groups[place] = group or []
            if not left:
                return groups
            self.made_again += n * len(left)
            given = self._given
            number = self.endpoint.take_weights(given.folder, given.by)
            self._given = replace(given, number=number)
        raise UserError(
            f"{self.endpoint.address} has answered with other weights than it was given, "
            f"{_ROUNDS} times: nobody else may give it any."
        )

    def _asked(
        self, asked: Sequence[Tokens], n: int, seeds: Sequence[int]
    ) -> list[list[Rollout] | None]:
        """Answers to each prompt; None where some are of other weights than those given."""
        futures = [
            self.endpoint.complete(
                list(one.tokens),
                replace(self._sampling, n=n, seed=seed),
                reported=True,
                experts=self._routing is not None,
            )
            for one, seed in zip(asked, seeds, strict=True)
        ]
        problems: list[Unanswered] = []
        groups = [
            self._group(one.tokens, future, n, problems)
            for one, future in zip(asked, futures, strict=True)
        ]
        if len(problems) == len(groups) and problems:
            raise UserError(f"{self.endpoint.address} {sentence_of(problems[0])}: no answer came.")
        return groups

    def _group(
        self, prompt: tuple[int, ...], future: "Future[Any]", n: int, problems: list[Unanswered]
    ) -> list[Rollout] | None:
        try:
            choices = choices_of(future.result(), n)
        except Unanswered as error:
            problems.append(error)
            self.lost[sentence_of(error)] += n
            return []
        if any(self._is_of_others(choice) for choice in choices):
            return None
        found = [self._rollout(prompt, choice) for choice in choices]
        return [rollout for rollout in found if rollout is not None]

    def _is_of_others(self, choice: Choice) -> bool:
        """Whether tokens come from other weights than the server was given, as far as it says."""
        given = self._given
        if given is None or given.number is None or choice.versions is None:
            return False
        return any(version != given.number for version in choice.versions)

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
        experts = self._experts(choice, len(prompt) + len(tokens) - 1)
        reason = choice.finish_reason
        end = next((n for n, token in enumerate(tokens, start=1) if token in self._ends), None)
        if end is not None:
            tokens, values, reason = tokens[:end], values[:end], "stop"
            if experts is not None:
                experts = experts[: len(prompt) + end - 1]
        return Rollout(prompt, tokens, values, reason, (self.version,) * len(tokens), experts)

    def _experts(self, choice: Choice, tokens: int) -> Tensor | None:
        """Where so many tokens of prompt and answer went, if that is wanted."""
        if self._routing is None:
            return None
        if choice.experts is None:
            raise UserError(
                f"{self.endpoint.address} does not tell where tokens went, which "
                "grpo.routing_replay needs: take dsv3 serve, or SGLang with "
                "--enable-return-routed-experts, or leave routing_replay out."
            )
        found = self._routing.of_tokens(choice.experts, tokens)
        if found is None:
            raise UserError(
                f"{self.endpoint.address} tells of experts that are not those of {tokens} tokens "
                "of the model in training: it serves another model."
            )
        return found
