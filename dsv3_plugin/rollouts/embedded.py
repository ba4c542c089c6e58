"""Answers by an engine of ours on the model in training: its weights where they lie."""

from collections.abc import Sequence

from megatron.core.models.gpt.gpt_model import GPTModel

from dsv3_plugin.inference.cache import CacheShape
from dsv3_plugin.inference.engine import Engine, EngineSettings
from dsv3_plugin.inference.requests import Request, SamplingParameters
from dsv3_plugin.recipe.rl import Rollouts
from dsv3_plugin.rollouts.asked import Asked
from dsv3_plugin.rollouts.rollout import Rollout


class Embedded:
    """Answers with the weights as they are at the moment.

    Args:
        model: a whole model of this process.
        settings: of the recipe.
        at_once: answers that are asked for at once, at the most.
        ends: tokens that end an answer.

    Raises:
        UserError: the model is divided, or the cache holds too little.
    """

    def __init__(
        self, model: GPTModel, settings: Rollouts, at_once: int, ends: frozenset[int]
    ) -> None:
        self._settings, self._ends = settings, ends
        self._engine = Engine(
            model,
            EngineSettings(
                self._cache_bytes(model, at_once),
                tokens_in_step=settings.tokens_in_step,
                most_running=max(at_once, 1),
                drafts=settings.drafts,
            ),
        )

    def answers(self, asked: Sequence[Asked], n: int, seeds: Sequence[int]) -> list[list[Rollout]]:
        """n answers to each prompt.

        What the engine remembers of the prompts is given back behind that: the memory is the
        training step's then.

        Args:
            asked: the prompts.
            n: answers to each.
            seeds: of each prompt's answers.
        """
        self._engine.weights_changed()  # also those written where autograd does not look
        requests = [
            Request(
                one.tokens,
                SamplingParameters(
                    max_tokens=self._settings.max_tokens, n=n, seed=seed, stop_tokens=self._ends
                ),
            )
            for one, seed in zip(asked, seeds, strict=True)
        ]
        done = [Rollout.of(answer) for answer in self._engine.run(requests)]
        self._engine.release_cache()
        return [done[start : start + n] for start in range(0, len(done), n)]

    @property
    def acceptance(self) -> list[float]:
        """How often a first, second, … guessed token was the one, since the engine was made."""
        counters = self._engine.counters
        return [
            accepted / max(guessed, 1)
            for guessed, accepted in zip(counters.guessed, counters.accepted, strict=True)
        ]

    def _cache_bytes(self, model: GPTModel, at_once: int) -> int:
        settings = self._settings
        if settings.cache_gb is not None:
            return int(settings.cache_gb * 1e9)
        predictors = model.config.mtp_num_layers if settings.drafts else 0
        longest = settings.max_prompt_tokens + settings.max_tokens + 2 * settings.drafts
        return CacheShape.of(model.config, predictors=predictors).bytes_for([longest] * at_once)
