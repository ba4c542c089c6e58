"""Answers by an engine of ours on the model in training: its weights where they lie."""

import operator
from collections.abc import Sequence

from torch import nn

from dsv3_plugin.inference.cache import CacheShape
from dsv3_plugin.inference.engine import Engine, EngineSettings
from dsv3_plugin.inference.forward import ModelParts
from dsv3_plugin.inference.requests import Request, SamplingParameters
from dsv3_plugin.model.rounded_once import rounded_once
from dsv3_plugin.recipe.rl import Rollouts
from dsv3_plugin.rollouts.asked import Asked
from dsv3_plugin.rollouts.parts import Part, parts_of, together
from dsv3_plugin.rollouts.rollout import Rollout


class Embedded:
    """Answers with the weights as they are at the moment.

    Ranks that have the model together, by pipeline or by experts, make one each and call it equally
    often.

    Args:
        model: this rank's chunks.
        settings: of the recipe.
        at_once: answers that are asked for at once, at the most.
        ends: tokens that end an answer.
        experts: tell where tokens went.

    Attributes:
        engine: that makes them.

    Raises:
        UserError: the model is divided otherwise, or the cache holds too little.
    """

    def __init__(
        self,
        model: Sequence[nn.Module],
        settings: Rollouts,
        at_once: int,
        ends: frozenset[int],
        experts: bool = False,
    ) -> None:
        self._experts = experts
        self._settings, self._ends = settings, ends
        self._guesses: tuple[tuple[int, ...], ...] = ((), ())
        self._parts = ModelParts(model)
        self.engine = Engine(
            model,
            EngineSettings(
                self._cache_bytes(self._parts, at_once),
                tokens_in_step=settings.tokens_in_step,
                most_running=max(at_once, 1),
                record_experts=experts,
                drafts=settings.drafts,
            ),
        )

    @property
    def leads(self) -> bool:
        """Whether this rank speaks for those that have the model together, of a pipeline."""
        return self.engine.leads

    def answers(
        self,
        asked: Sequence[Asked],
        n: int,
        seeds: Sequence[int],
        *,
        version: int | None = None,
        begun: Sequence[Sequence[Rollout]] | None = None,
        most: int | None = None,
    ) -> list[list[Rollout]]:
        """n answers to each prompt: in a pipeline to those of the first rank, and all get them.

        What the engine remembers of the prompts is given back behind that: the memory is the
        training step's then.

        Args:
            asked: the prompts.
            n: answers to each.
            seeds: of each prompt's answers.
            version: of the weights; None: as the engine counts them.
            begun: of each prompt answers that are there, of which the unfinished ones are gone on
                with; none of those that are asked for the first time.
            most: tokens of an answer now, behind which it is unfinished; None: all that it may
                have.
        """
        counters = self.engine.counters
        before = tuple(counters.guessed), tuple(counters.accepted)
        self.engine.weights_changed()  # also those written where autograd does not look
        begun = begun or [()] * len(asked)
        longest = self._settings.max_tokens
        parts = [
            parts_of(one.tokens, own, n, seed, longest, most)
            for one, seed, own in zip(asked, seeds, begun, strict=True)
        ]
        requests = [self._request(part) for of_prompt in parts for part in of_prompt]
        with rounded_once(self._parts.config, self._parts.device):
            done = self.engine.run(requests if self.leads else [])
        found = iter([Rollout.of(answer, version) for answer in done])
        answers = [
            together(own, mine, [[next(found) for _ in range(part.n)] for part in mine], longest)
            for own, mine in zip(begun, parts, strict=True)
        ]
        self.engine.release_cache()
        after = counters.guessed, counters.accepted
        self._guesses = tuple(
            tuple(map(operator.sub, now, earlier))
            for now, earlier in zip(after, before, strict=True)
        )
        return answers

    def _request(self, part: Part) -> Request:
        sampling = SamplingParameters(
            max_tokens=part.most,
            temperature=self._settings.temperature,
            n=part.n,
            seed=part.seed,
            stop_tokens=self._ends,
        )
        return Request(part.tokens, sampling)

    @property
    def guesses(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """How often a first, second, … token was guessed ahead in the last answers, and was the
        one."""
        return self._guesses

    def _cache_bytes(self, parts: ModelParts, at_once: int) -> int:
        settings = self._settings
        if settings.cache_gb is not None:
            return int(settings.cache_gb * 1e9)
        predictors = parts.predictors if settings.drafts else 0
        shape = CacheShape.of(
            parts.config,
            layers=len(parts.layers),
            predictors=predictors,
            moe_layers=len(parts.moe_layers) if self._experts else 0,
        )
        longest = settings.max_prompt_tokens + settings.max_tokens + 2 * settings.drafts
        return max(parts.company.of_pipeline(shape.bytes_for([longest] * at_once)))
