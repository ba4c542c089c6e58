"""An engine of ours that answers for a run: on the training ranks, with the weights where they
lie."""

import time
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

    Attributes:
        answered: when the last answers were there, by `time.perf_counter`.
    """

    def __init__(self, recipe: Rl, ends: frozenset[int]) -> None:
        self._recipe, self._ends = recipe, ends
        self._engine: Embedded | None = None
        self._found: list[list[Rollout]] = []
        self._version = 0
        self.answered = 0.0

    @property
    def leads(self) -> bool:
        """Whether this rank speaks for its replica of the model."""
        return self._engine.leads

    @property
    def costs(self) -> Costs:
        """Of the last answers of this replica."""
        guessed, accepted = self._engine.guesses
        return Costs(guessed=guessed, accepted=accepted)

    def take_weights(self, model: Sequence[torch.nn.Module], version: int) -> None:
        """Nothing is to be taken: they are read where they lie."""
        self._version = version
        if self._engine is None:
            settings = self._recipe.rollouts
            at_once = settings.prompts // self._recipe.data_parallel * settings.n
            replay = self._recipe.grpo.routing_replay
            self._engine = Embedded(model, settings, at_once, self._ends, experts=replay)

    def ask(
        self,
        asked: Sequence[Asked],
        n: int,
        seeds: Sequence[int],
        begun: Sequence[Sequence[Rollout]],
        most: int | None,
    ) -> None:
        """Have n answers made to each prompt of this rank's replica, at once.

        Args:
            asked: all prompts, the same on all ranks.
            n: answers to each.
            seeds: of each prompt's answers.
            begun: of each prompt answers to go on with, where there are any.
            most: tokens of an answer now; None: all that it may have.
        """
        replicas = parallel_state.get_data_parallel_world_size()
        mine = slice(parallel_state.get_data_parallel_rank(), None, replicas)
        self._found = self._engine.answers(
            asked[mine], n, seeds[mine], version=self._version, begun=begun[mine], most=most
        )
        self.answered = time.perf_counter()

    def answers(self) -> list[list[Rollout]]:
        """What was asked last."""
        return self._found
