"""A way of running a recipe weighed exactly: its layout balanced, its schedule simulated."""

from dsv3_plugin.errors import UserError
from dsv3_plugin.machine import Machine
from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.planner.memory.of_recipe import rank_memories
from dsv3_plugin.planner.phases import largest_batches, phases_of
from dsv3_plugin.planner.resolve import resolve
from dsv3_plugin.planner.search.candidate import Candidate, Choice
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.time.recipe_steps import RecipeSteps
from dsv3_plugin.recipe.load import changed
from dsv3_plugin.recipe.schema import Recipe


class Scales:
    """What weighs the ways of running a recipe, each once.

    Attributes:
        given: the recipe.
        cluster: where it is meant to run.
        machine: what `auto` in it is resolved for.
        imbalance: load of the busiest rank's experts over the mean.
    """

    def __init__(self, given: Recipe, cluster: Cluster, machine: Machine, imbalance: float) -> None:
        self.given, self.cluster, self.machine = given, cluster, machine
        self.imbalance = imbalance
        self._known: dict[Choice, Candidate | UserError] = {}

    @property
    def number(self) -> int:
        """How many were weighed."""
        return sum(isinstance(known, Candidate) for known in self._known.values())

    def weigh(self, choice: Choice) -> Candidate:
        """The recipe with a choice.

        Raises:
            UserError: a rule forbids it, or no layout of it fits into memory.
        """
        if choice not in self._known:
            texts = [f"{key}={_text(value)}" for key, value in choice.keys().items()]
            try:
                self._known[choice] = self.weigh_recipe(changed(self.given, texts), choice)
            except UserError as refusal:
                self._known[choice] = refusal
        known = self._known[choice]
        if isinstance(known, UserError):
            raise known
        return known

    def weigh_recipe(self, recipe: Recipe, choice: Choice) -> Candidate:
        """A recipe as it is; a layout that it leaves open is balanced.

        Raises:
            UserError: no layout of it fits into memory.
        """
        recipe = resolve(recipe, self.machine, self.cluster, must_fit=False)
        setting = Setting.of(recipe, self.cluster, self.machine, self.imbalance)
        steps = RecipeSteps(recipe, setting, self.cluster)
        phases = phases_of(recipe)
        batch = phases[-1].batches[-1][0]
        step = steps.step(batch)
        memory = max(
            (memory.total, -rank)
            for largest in largest_batches(phases).values()
            for rank, memory in enumerate(rank_memories(steps, largest))
        )
        return Candidate(
            choice=choice,
            recipe=recipe,
            step_seconds=step.seconds,
            time_by_part={part: value for part, value in step.mean_parts.items() if value},
            tokens_per_second_per_gpu=batch
            * recipe.data.seq_length
            / step.seconds
            / setting.processes,
            memory_bytes=memory[0],
            memory_rank=-memory[1],
            fits=memory[0] <= self.cluster.memory_bytes,
        )


def _text(value: object) -> str:
    """A value as an override has it."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{','.join(value)}]"
    return str(value)
