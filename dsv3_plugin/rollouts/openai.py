"""Answers by a server elsewhere, which speaks OpenAI's language.

What comes is what an engine of ours gives: token ids, their log-probabilities, why an answer ended,
and the version of the weights. A server that is killed and started again in the middle is waited
for; answers that it made with other weights than it was given are not kept.
"""

import enum
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
from dsv3_plugin.rollouts.parts import Part, parts_of, together
from dsv3_plugin.rollouts.rollout import Rollout
from dsv3_plugin.rollouts.routing import Routing
from dsv3_plugin.rollouts.same_tokenizer import refuse_other_tokenizer
from dsv3_plugin.web import Refused, Unanswered


class Tokens(Protocol):
    """A prompt, as it is asked."""

    @property
    def tokens(self) -> tuple[int, ...]: ...


_ROUNDS = 4
"""A server is started again now and then, and not during each of four rounds of answers."""


class _Others(enum.Enum):
    """In the place of answers: they are of other weights than those that the server was given."""

    OTHERS = enum.auto()


_OTHERS = _Others.OTHERS


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
        put_off: answers that are begun, and were not gone on with, by the reason.

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
        self.put_off: Counter[str] = Counter()
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

    def answers(
        self,
        asked: Sequence[Tokens],
        n: int,
        seeds: Sequence[int],
        *,
        version: int | None = None,
        begun: Sequence[Sequence[Rollout]] | None = None,
        most: int | None = None,
    ) -> list[list[Rollout]]:
        """n answers to each prompt, or fewer where the server fails at some.

        A server that was started again has the weights that it began with: it is given those of
        this version once more, and what it has answered with others is asked again.

        Args:
            asked: the prompts.
            n: answers to each.
            seeds: of each prompt's answers.
            version: of the weights, as the answers are to say; None: this one's own.
            begun: of each prompt answers that are there, of which the unfinished ones are gone on
                with, each by a request of its own; none of those that are asked for the first time.
                Where the server fails at one, it stays as it is.
            most: tokens of an answer now, behind which it is unfinished; None: all that it may
                have.

        Raises:
            UserError: not one answer came, or the server does not keep the weights it is given.
        """
        version = self.version if version is None else version
        longest = self._sampling.max_tokens
        begun = begun or [()] * len(asked)
        parts = [
            parts_of(one.tokens, own, n, seed, longest, most)
            for one, own, seed in zip(asked, begun, seeds, strict=True)
        ]
        found = iter(self._of_parts([part for mine in parts for part in mine], version))
        return [
            together(own, mine, [next(found) for _ in mine], longest)
            for own, mine in zip(begun, parts, strict=True)
        ]

    def _of_parts(self, parts: Sequence[Part], version: int) -> list[list[Rollout] | None]:
        """Answers to each, of the weights that the server was given: see `together`."""
        done: dict[int, list[Rollout] | None] = {}
        problems: list[Unanswered] = []
        left = list(range(len(parts)))
        for _ in range(_ROUNDS):
            found = self._asked([parts[place] for place in left], version, problems)
            if parts and len(problems) == len(parts):
                said = sentence_of(problems[0])
                raise UserError(f"{self.endpoint.address} {said}: no answer came.")
            done |= {place: of for place, of in zip(left, found, strict=True) if of is not _OTHERS}
            left = [place for place in left if place not in done]
            if not left:
                return [done[place] for place in range(len(parts))]
            self.made_again += sum(parts[place].n for place in left)
            given = self._given
            number = self.endpoint.take_weights(given.folder, given.by)
            self._given = replace(given, number=number)
        raise UserError(
            f"{self.endpoint.address} has answered with other weights than it was given, "
            f"{_ROUNDS} times: nobody else may give it any."
        )

    def _asked(
        self, parts: Sequence[Part], version: int, problems: list[Unanswered]
    ) -> list[list[Rollout] | _Others | None]:
        """Answers to each part, and why some have none."""
        futures = [
            self.endpoint.complete(
                list(part.tokens),
                replace(self._sampling, n=part.n, seed=part.seed, max_tokens=part.most),
                reported=True,
                experts=self._routing is not None,
            )
            for part in parts
        ]
        return [
            self._of_part(part, future, version, problems)
            for part, future in zip(parts, futures, strict=True)
        ]

    def _of_part(
        self, part: Part, future: "Future[Any]", version: int, problems: list[Unanswered]
    ) -> list[Rollout] | _Others | None:
        try:
            choices = choices_of(future.result(), part.n)
        except Unanswered as error:
            problems.append(error)
            return self._without(part, sentence_of(error), part.n, isinstance(error, Refused))
        if any(self._is_of_others(choice) for choice in choices):
            return _OTHERS
        rollouts = []
        for choice in choices:
            if (problem := _problem(choice)) is None:
                rollouts.append(self._rollout(part.tokens, choice, version))
            elif self._without(part, problem, 1) is None:
                return None
        return rollouts

    def _without(
        self, part: Part, problem: str, answers: int, refused: bool = False
    ) -> list[Rollout] | None:
        """In the place of answers that did not come. What an answer has of its beginning stays for
        the next round, unless that is refused, which it would be then as well."""
        if part.begun is not None and not refused:
            self.put_off[problem] += 1
            return None
        self.lost[problem] += answers
        return []

    def _is_of_others(self, choice: Choice) -> bool:
        """Whether tokens come from other weights than the server was given, as far as it says."""
        given = self._given
        if given is None or given.number is None or choice.versions is None:
            return False
        return any(version != given.number for version in choice.versions)

    def _rollout(self, prompt: tuple[int, ...], choice: Choice, version: int) -> Rollout:
        tokens, values = choice.tokens, choice.log_probs
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
        return Rollout(prompt, tokens, values, reason, (version,) * len(tokens), experts)

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


def _problem(choice: Choice) -> str | None:
    """Why an answer is none to learn from; None: it is one."""
    tokens, values = choice.tokens, choice.log_probs
    if not tokens or values is None or len(tokens) != len(values):
        return "came without token ids or log-probabilities"
    if not all(map(math.isfinite, values)):
        return "came with log-probabilities that are no numbers"
    return None
