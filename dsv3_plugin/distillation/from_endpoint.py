"""Answers of a server that speaks OpenAI's language, by its chat."""

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from dsv3_plugin.distillation.teacher import Answered, seed_of
from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.requests import SamplingParameters
from dsv3_plugin.rollouts.endpoint import Choice, Endpoint, choices_of, sentence_of
from dsv3_plugin.rollouts.prompts import Prompt
from dsv3_plugin.web import Refused, Unanswered

_NOBODY_IS_SERVED = (401, 403, 404)
"""Statuses that say it of the key or the model, not of a problem."""


@dataclass(frozen=True)
class EndpointTeacher:
    """Answers of a server.

    Attributes:
        endpoint: the server.
        sampling: how.
        max_tokens: of an answer; None: what the server allows.
        seed: of all.
        at_once: problems that are asked at once.
    """

    endpoint: Endpoint
    sampling: SamplingParameters
    max_tokens: int | None
    seed: int
    at_once: int

    def answers(
        self, problems: Sequence[Prompt], n: int
    ) -> Iterator[tuple[Prompt, list[Answered]]]:
        """See `Teacher`. Each answer is a request of its own: not every server knows `n`."""
        waiting = iter(problems)
        asked: dict[str, tuple[Prompt, list[Future[Any]]]] = {}
        while True:
            for problem in islice(waiting, self.at_once - len(asked)):
                asked[problem.key] = problem, [self._ask(problem, i) for i in range(n)]
            if not asked:
                return
            under_way = [f for _, futures in asked.values() for f in futures if not f.done()]
            wait(under_way, return_when=FIRST_COMPLETED)
            for key, (problem, futures) in list(asked.items()):
                if all(future.done() for future in futures):
                    del asked[key]
                    yield problem, [self._answered(future) for future in futures]

    def _ask(self, problem: Prompt, number: int) -> "Future[Any]":
        sampling = replace(self.sampling, seed=seed_of(self.seed, problem.key, number))
        return self.endpoint.chat(problem.conversation, sampling, self.max_tokens)

    def _answered(self, future: "Future[Any]") -> Answered:
        try:
            (choice,) = choices_of(future.result(), 1)
        except Refused as error:
            if error.status in _NOBODY_IS_SERVED:
                raise UserError(f"{self.endpoint.address} {sentence_of(error)}.") from None
            return Answered(refusal=f"the server {sentence_of(error)}")
        except Unanswered as error:
            if error.down:
                raise UserError(
                    f"{self.endpoint.address} {error.problem} any more. What is finished is kept: "
                    "the same command goes on with the rest."
                ) from None
            return Answered(failure=f"the server {error.problem}")
        if choice.finish_reason == "cancelled":
            return Answered(refusal="the server ended it")
        return Answered(_text_of(choice), whole=choice.finish_reason == "stop")


def _text_of(choice: Choice) -> str:
    """An answer with its thoughts, which some servers take out, as DeepSeek-R1 writes them."""
    if not choice.thoughts:
        return choice.text
    return f"<think>\n{choice.thoughts.strip()}\n</think>\n\n{choice.text}"
