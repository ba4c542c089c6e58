"""An engine of ours that answers for a run: on the training ranks, with the weights where they
lie."""

from collections.abc import Sequence

import torch
from megatron.core import parallel_state

from dsv3_plugin.recipe.rl import Rl
from dsv3_plugin.rollouts.asked import Asked
from dsv3_plugin.rollouts.embedded import Embedded
from dsv3_plugin.rollouts.rollout import Rollout
from dsv3_plugin.stages.round_numbers import Costs


class OwnEngine:
    """Answers of the model itself; the ranks that have it together call equally often.

    Args:
        recipe: the run's.
        ends: tokens that end an answer.
    """

    def __init__(self, recipe: Rl, ends: frozenset[int]) -> None:
        self._recipe, self._ends = recipe, ends
        self._engine: Embedded | None = None

    @property
    def leads(self) -> bool:
        """Whether this rank speaks for its replica of the model."""
        return self._engine.leads

    @property
    def costs(self) -> Costs:
        """Of the last answers of this replica."""
        return Costs(0.0, *self._engine.guesses)

    def take_weights(self, model: Sequence[torch.nn.Module], version: int) -> None:
        """Nothing is to be taken: they are read where they lie."""
        if self._engine is None:
            settings = self._recipe.rollouts
            at_once = settings.prompts // self._recipe.data_parallel * settings.n
            replay = self._recipe.grpo.routing_replay
            self._engine = Embedded(model, settings, at_once, self._ends, experts=replay)

    def answers(self, asked: Sequence[Asked], n: int, seeds: Sequence[int]) -> list[list[Rollout]]:
        """n answers to each prompt of this rank's replica.

        Args:
            asked: all prompts, the same on all ranks.
            n: answers to each.
            seeds: of each prompt's answers.
        """
        replicas = parallel_state.get_data_parallel_world_size()
        mine = slice(parallel_state.get_data_parallel_rank(), None, replicas)
        return self._engine.answers(asked[mine], n, seeds[mine])
