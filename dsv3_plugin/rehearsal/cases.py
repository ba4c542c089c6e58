"""Which ranks and which steps of a run are rehearsed.

Ranks of one pipeline position hold the same layers, so one of each is enough; and of those, ranks
in the middle of a pipeline differ only by how many micro-batches they hold at once. A long step
repeats itself: a schedule is rehearsed with as few micro-batches as already hold the most memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dsv3_plugin.errors import UserError
from dsv3_plugin.planner.phases import phases_of
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.schedules.registry import SCHEDULES

_ALL = "all"
"""Of `--ranks`: one at every place of the pipeline."""


@dataclass(frozen=True)
class StepCase:
    """A step that is rehearsed.

    Attributes:
        phase: what the planner calls the stretch of the run that it stands for.
        schedule: its schedule.
        micro_batches: of the run's step, on each data-parallel rank.
        folded: of the rehearsed one.
    """

    phase: str
    schedule: str
    micro_batches: int
    folded: int


def step_cases(recipe: Recipe) -> list[StepCase]:
    """One step of each schedule that the run uses, the one with most micro-batches."""
    per_micro_batch = recipe.training.micro_batch_size * recipe.data_parallel
    largest: dict[str, StepCase] = {}
    for phase in phases_of(recipe):
        micro_batches = phase.largest // per_micro_batch
        known = largest.get(phase.schedule)
        if known is None or known.micro_batches < micro_batches:
            folded = fold(phase.schedule, recipe.parallel.pipeline, micro_batches)
            largest[phase.schedule] = StepCase(phase.name, phase.schedule, micro_batches, folded)
    return list(largest.values())


def fold(schedule: str, pipeline: int, micro_batches: int) -> int:
    """Micro-batches with which a schedule holds as much memory at once as with `micro_batches`.

    Args:
        schedule: its name.
        pipeline: P, ranks.
        micro_batches: of the whole step.
    """
    if pipeline == 1:
        return min(micro_batches, 2)
    kind = SCHEDULES.get(schedule)
    if kind is None or kind.make is None:  # a file's, or found for this very number
        return micro_batches
    together = kind.multiple
    if kind.upstream_multiple is not None:
        together = max(together, kind.upstream_multiple(pipeline))
    # Every rank has begun to repeat itself once each has as many on their way as it ever has.
    enough = max(kind.least_micro_batches(pipeline), 2 * pipeline) + 2 * together
    return min(micro_batches, -(-enough // together) * together)


def shortest(cases: Sequence[StepCase], pipeline: int) -> StepCase:
    """Of some steps the one that can be shortest, with as few micro-batches as it takes."""
    shortened = []
    for case in cases:
        kind = SCHEDULES.get(case.schedule)
        least = case.folded
        if kind is not None and kind.make is not None and pipeline > 1:
            least = min(least, kind.least_micro_batches(pipeline))
        shortened.append(replace(case, folded=least))
    return min(shortened, key=lambda case: case.folded)


def company_of(recipe: Recipe) -> list[int]:
    """Ranks to rehearse beside those of each kind, and these: others of their groups.

    At the first and a middle place of the pipeline, the next rank, the next that has the same
    part of each tensor, and the next that has the same experts.
    """
    parallel = recipe.parallel
    places = sorted({0, parallel.pipeline // 2})
    size = parallel.processes // parallel.pipeline
    strides = {0, 1, parallel.tensor, parallel.tensor * parallel.expert}
    offsets = sorted(stride for stride in strides if stride < size)
    if len(offsets) == 1:
        return []
    return [place * size + offset for place in places for offset in offsets]


def company_for(recipe: Recipe, words: str | None) -> list[int]:
    """Of what `--ranks` asks for, the ranks that keep those company: none where it names ranks."""
    return company_of(recipe) if words in (None, _ALL) else []


def ranks_of_each_kind(recipe: Recipe) -> list[int]:
    """A rank at the first, a middle and the last place of the pipeline."""
    pipeline = recipe.parallel.pipeline
    places = sorted({0, pipeline // 2, pipeline - 1})
    return [place * (recipe.parallel.processes // pipeline) for place in places]


def chosen_ranks(recipe: Recipe, words: str | None) -> list[int]:
    """The ranks that `--ranks` asks for: one of each kind, of each place, or those of the world.

    Raises:
        UserError: there are no such ranks.
    """
    if words is None:
        return ranks_of_each_kind(recipe)
    processes, pipeline = recipe.parallel.processes, recipe.parallel.pipeline
    if words == _ALL:
        return list(range(0, processes, processes // pipeline))
    return sorted({_rank(word, processes) for word in words.split(",")})


def _rank(word: str, processes: int) -> int:
    if not word.strip().isdecimal() or int(word) >= processes:
        raise UserError(
            f"--ranks {word.strip() or '(nothing)'}: give ranks from 0 to {processes - 1:,} with "
            "commas between them, or `all` for one at every place of the pipeline"
        )
    return int(word)
