"""The model in training, asked by all ranks together."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from dsv3_plugin.checkpoint.trained_on import TOKENIZER
from dsv3_plugin.recipe.rl import Rl
from dsv3_plugin.rollouts.asked import Asked
from dsv3_plugin.rollouts.groups import Group, scored
from dsv3_plugin.rollouts.judging import Judging
from dsv3_plugin.rollouts.rollout import Rollout
from dsv3_plugin.rollouts.seeds import seed_below
from dsv3_plugin.stages.own_engine import OwnEngine
from dsv3_plugin.stages.round_numbers import Costs
from dsv3_plugin.stages.server import Server
from dsv3_plugin.training.prompts import PromptData, prompts_of


@dataclass(frozen=True)
class _Part:
    """What a replica of the model has answered.

    Attributes:
        groups: judged answers to its prompts.
        costs: of them.
    """

    groups: list[Group]
    costs: Costs


class Source(Protocol):
    """Who answers; all ranks call each method, and each gets the part of its replica."""

    @property
    def leads(self) -> bool: ...

    @property
    def costs(self) -> Costs: ...

    @property
    def answered(self) -> float: ...

    def take_weights(self, model: Sequence[torch.nn.Module], version: int) -> None: ...

    def ask(
        self,
        asked: Sequence[Asked],
        n: int,
        seeds: Sequence[int],
        begun: Sequence[Sequence[Rollout]],
        most: int | None,
    ) -> None: ...

    def answers(self) -> list[list[Rollout]]: ...


class Policy:
    """Answers prompts with the weights as they are, and judges the answers; use as a context.

    Ranks that have a model together answer a part of the prompts together, or a server answers all;
    one rank of each replica judges. All ranks are told all of it.

    Args:
        recipe: the run's.
        judging: its rewards.
        tell: takes a sentence for the person.
    """

    def __init__(self, recipe: Rl, judging: Judging, tell: Callable[[str], None]) -> None:
        self._recipe, self._judging = recipe, judging
        self._server = Server(recipe, tell) if recipe.rollouts.kind == "openai" else None
        self._asked: Sequence[Asked] = ()
        self._began = 0.0

    def __enter__(self) -> "Policy":
        return self

    def __exit__(self, *_: object) -> None:
        self._judging.__exit__()
        if self._server is not None:
            self._server.close()

    def open(self) -> None:
        """On the first rank, once the run's folder has its tokenizer.

        Raises:
            UserError: the server that answers cannot be trained from.
        """
        if self._server is not None:
            self._server.open(self.data)

    @cached_property
    def data(self) -> PromptData:
        """What is asked."""
        return prompts_of(self._recipe, self._recipe.checkpoint_folder / TOKENIZER)

    def groups(
        self,
        model: Sequence[torch.nn.Module],
        asked: Sequence[Asked],
        n: int,
        seed: object,
        version: int,
    ) -> tuple[list[Group], Costs]:
        """Judged answers to prompts: `ask`, and then `asked_for`."""
        self.ask(model, asked, n, seed, version)
        return self.asked_for()

    def ask(
        self,
        model: Sequence[torch.nn.Module],
        asked: Sequence[Asked],
        n: int,
        seed: object,
        version: int,
        begun: Sequence[Sequence[Rollout]] | None = None,
        most: int | None = None,
    ) -> None:
        """Have prompts answered: a server does that while its callers go on. All ranks call.

        Args:
            model: this rank's chunks.
            asked: prompts, the same on all ranks.
            n: answers to each.
            seed: of the answers, a different one for each call.
            version: of the weights: the steps that were taken.
            begun: of each prompt answers that are gone on with; None: there are none.
            most: tokens of an answer now, behind which it is unfinished; None: all.
        """
        self._asked, self._began = asked, time.perf_counter()
        self._source.take_weights(model, version)
        seeds = [seed_below(seed, number) for number in range(len(asked))]
        self._source.ask(asked, n, seeds, begun or [()] * len(asked), most)

    def asked_for(self) -> tuple[list[Group], Costs]:
        """Judged answers to what was asked last, and what they cost; all ranks call, and get
        all."""
        replicas, source = parallel_state.get_data_parallel_world_size(), self._source
        asked, answers = self._asked, source.answers()
        mine = asked[parallel_state.get_data_parallel_rank() :: replicas]
        parts = _told_to_all(self._judged(mine, answers) if source.leads else None)
        groups = [
            parts[number % replicas].groups[number // replicas] for number in range(len(asked))
        ]
        return groups, sum((part.costs for part in parts), Costs())

    @cached_property
    def _source(self) -> Source:
        return self._server or OwnEngine(self._recipe, self.data.ends)

    def _judged(self, asked: Sequence[Asked], answers: Sequence[Sequence[Rollout]]) -> _Part:
        """What answers are worth."""
        began = time.perf_counter()
        groups = scored(asked, answers, self.data.tokenizer, self.data.ends, self._judging)
        judging = time.perf_counter() - began
        making = max(self._source.answered - self._began, 0.0)
        return _Part(groups, self._source.costs + Costs(making, judging))


def judges(recipe: Rl, rank: int) -> bool:
    """Whether a rank of the world judges what its replica of the model has answered: the first of
    each pipeline does, and upstream numbers pipelines last."""
    return rank < recipe.parallel.processes // recipe.parallel.pipeline


def _told_to_all(own: _Part | None) -> list[_Part]:
    """The parts of all replicas of the model.

    Args:
        own: that of this rank's replica; None where another rank of its pipeline speaks for it, the
            first, as in all replicas.
    """
    told: list[list[_Part] | None] = [None]
    if own is not None:
        replicas = parallel_state.get_data_parallel_group()
        parts = [own] * replicas.size()
        dist.all_gather_object(parts, own, group=replicas)
        told = [parts]
    pipeline = parallel_state.get_pipeline_model_parallel_group()
    if pipeline.size() > 1:
        device = torch.device(torch.cuda.current_device())
        dist.broadcast_object_list(told, group=pipeline, group_src=0, device=device)
    return told[0]
