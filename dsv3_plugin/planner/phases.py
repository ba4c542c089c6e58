"""The phases of a run: stretches of it in which batches grow, or stay, under one schedule."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from dsv3_plugin.planner.recipe_schedules import schedule_name
from dsv3_plugin.recipe.schema import Recipe


@dataclass(frozen=True)
class Phase:
    """A stretch of a run.

    Attributes:
        schedule: the pipeline schedule's name.
        batches: (sequences of a step, number of such steps), in their order.
        seq_length: tokens of a sequence.
    """

    schedule: str
    batches: tuple[tuple[int, int], ...]
    seq_length: int

    @property
    def name(self) -> str:
        smallest, largest = self.smallest, self.largest
        sizes = f"{largest:,}" if smallest == largest else f"{smallest:,} to {largest:,}"
        return f"batch {sizes}"

    @property
    def smallest(self) -> int:
        """Sequences of its smallest step."""
        return min(batch for batch, _ in self.batches)

    @property
    def largest(self) -> int:
        """Sequences of its largest step, which holds most micro-batches at once."""
        return max(batch for batch, _ in self.batches)

    @property
    def steps(self) -> int:
        return sum(steps for _, steps in self.batches)

    @property
    def tokens(self) -> int:
        return sum(batch * steps for batch, steps in self.batches) * self.seq_length


def phases_of(recipe: Recipe) -> list[Phase]:
    """The phases of a run, in their order.

    A phase ends where the schedule changes (a growing batch has too few micro-batches for some),
    and where the batch becomes what it stays.
    """
    per_micro_batch = recipe.training.micro_batch_size * recipe.data_parallel
    levels = recipe.batch_schedule.levels(recipe.total_steps)
    final = levels[-1][0]

    def alike(level: tuple[int, int]) -> tuple[str, bool]:
        batch, _ = level
        return schedule_name(recipe, batch // per_micro_batch), batch == final

    return [
        Phase(schedule, tuple(batches), recipe.data.seq_length)
        for (schedule, _), batches in groupby(levels, alike)
    ]


def largest_batches(phases: Iterable[Phase]) -> dict[str, int]:
    """Of each schedule its largest batch: whatever fits then fits always."""
    largest: dict[str, int] = {}
    for phase in phases:
        largest[phase.schedule] = max(phase.largest, largest.get(phase.schedule, 0))
    return largest
