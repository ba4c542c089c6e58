"""The ways of running a recipe, ranked: thousands estimated, the best of them weighed exactly."""

from collections import Counter
from dataclasses import replace

from dsv3_plugin.errors import UserError
from dsv3_plugin.machine import Machine
from dsv3_plugin.numbers import bytes_text, number_of
from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.planner.make import refuse_impossible
from dsv3_plugin.planner.search.candidate import Candidate, Choice, Ranking
from dsv3_plugin.planner.search.estimate import Estimates
from dsv3_plugin.planner.search.neighbours import SAME, Neighbours, neighbours
from dsv3_plugin.planner.search.reasons import describe, why_chosen, why_lost
from dsv3_plugin.planner.search.space import choices, recomputed
from dsv3_plugin.planner.search.weigh import Scales
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.recipe.schema import Recipe

_WEIGHED = 24
"""Ways that are weighed exactly: about half a second each for 2048 devices."""
_ALIKE = 3
"""Of them, ways of one division of the ranks; estimates of ways so alike err alike."""
_SHOWN = 6
"""Runners-up that are told."""
_ROUGHLY = 1.05
"""What an estimate of a rank's bytes may be over what there is: whether it fits is weighed."""


def rank(recipe: Recipe, cluster: Cluster, machine: Machine, imbalance: float = 1.0) -> Ranking:
    """The ways of running a recipe on a cluster, the one with the shortest step first.

    Args:
        recipe: the run; its processes, model, data, curves and formats stay.
        cluster: where it is meant to run.
        machine: what `auto` in the recipe is resolved for.
        imbalance: load of the busiest rank's experts over the mean.

    Raises:
        UserError: the cluster cannot run it at all, or no way fits into its memory.
    """
    refuse_impossible(recipe, cluster)
    scales = Scales(recipe, cluster, machine, imbalance)
    batch = recipe.batch_schedule.last
    setting = Setting.of(recipe, cluster, machine, imbalance)
    estimates = Estimates(setting, cluster, batch)
    levels = recomputed(recipe, machine)
    ways = sorted(choices(recipe, cluster, machine), key=estimates.seconds)
    weighed: list[Candidate] = []
    nearest: list[Candidate] = []
    for choice in _shortlist(ways, levels, estimates):
        candidate = _weighed(scales, choice, levels)
        if candidate is not None:
            (weighed if candidate.fits else nearest).append(candidate)
    given = _given(scales)
    if given is not None and given.fits:
        weighed.append(given)
    if not weighed:
        raise UserError(_nothing_fits(scales, nearest))
    weighed.sort(key=lambda candidate: candidate.step_seconds)
    best, beside = _improved(weighed[0], scales, estimates, levels)
    others = _different([best, *weighed])
    return Ranking(
        cluster=cluster,
        candidates=(
            replace(best, reasons=tuple(why_chosen(best, beside, scales))),
            *(replace(other, reasons=(why_lost(other, best),)) for other in others),
        ),
        given=given,
        considered=len(ways),
        weighed=scales.number,
    )


def _improved(
    best: Candidate, scales: Scales, estimates: Estimates, levels: list[tuple[str, ...]]
) -> tuple[Candidate, list[Neighbours]]:
    """The best way and what stands beside it, after a neighbour took its place while one could."""
    while True:
        beside = list(neighbours(best.choice, scales, estimates, levels))
        fitting = (_fitting(scales, choice) for one in beside for _, choice in one.others)
        shorter = [
            candidate
            for candidate in fitting
            if candidate is not None and candidate.step_seconds < best.step_seconds * (1 - SAME)
        ]
        if not shorter:
            return best, beside
        best = min(shorter, key=lambda candidate: candidate.step_seconds)


def _fitting(scales: Scales, choice: Choice) -> Candidate | None:
    """A way weighed; None where it cannot be, or does not fit."""
    try:
        candidate = scales.weigh(choice)
    except UserError:
        return None
    return candidate if candidate.fits else None


def _shortlist(
    ways: list[Choice], levels: list[tuple[str, ...]], estimates: Estimates
) -> list[Choice]:
    """The best by estimates, each with as little computed again as fits; or what comes nearest."""
    room = _ROUGHLY * estimates.cluster.memory_bytes
    found: list[tuple[float, Choice]] = []
    alike: Counter[tuple[int, int, int, int]] = Counter()
    for choice in ways:
        enough = sorted(seconds for seconds, _ in found)[:_WEIGHED]
        if len(enough) == _WEIGHED and estimates.seconds(choice) >= enough[-1]:
            break  # more computed again takes no less
        division = (choice.tensor, choice.pipeline, choice.context, choice.expert)
        if alike[division] == _ALIKE:
            continue
        for level in levels:
            candidate = replace(choice, recompute=level)
            if estimates.bytes(candidate) <= room:
                found.append((estimates.seconds(candidate), candidate))
                alike[division] += 1
                break
    if found:
        return [choice for _, choice in sorted(found, key=lambda item: item[0])[:_WEIGHED]]
    most = [replace(choice, recompute=levels[-1]) for choice in ways]
    return sorted(most, key=estimates.bytes)[:_ALIKE]


def _weighed(scales: Scales, choice: Choice, levels: list[tuple[str, ...]]) -> Candidate | None:
    """A way weighed, with more computed again until it fits; None where a rule forbids it."""
    candidate = None
    for level in levels[levels.index(choice.recompute) :]:
        try:
            candidate = scales.weigh(replace(choice, recompute=level))
        except UserError:
            continue
        if candidate.fits:
            break
    return candidate


def _given(scales: Scales) -> Candidate | None:
    """The recipe as it was given."""
    try:
        return scales.weigh_recipe(scales.given, Choice.of(scales.given))
    except UserError:
        return None


def _different(weighed: list[Candidate]) -> list[Candidate]:
    """The runners-up, one of each division and schedule: what differs little says little."""
    seen = {_kind(weighed[0])}
    found = []
    for candidate in weighed[1:]:
        if _kind(candidate) not in seen and len(found) < _SHOWN:
            seen.add(_kind(candidate))
            found.append(candidate)
    return found


def _kind(candidate: Candidate) -> tuple[object, ...]:
    choice = candidate.choice
    return (choice.tensor, choice.pipeline, choice.context, choice.expert, choice.schedule)


def _nothing_fits(scales: Scales, nearest: list[Candidate]) -> str:
    """What is missing, and what comes close."""
    cluster, recipe = scales.cluster, scales.given
    there = bytes_text(cluster.memory_bytes)
    what = (
        f"{recipe.name} fits in no way on {number_of(recipe.parallel.processes, 'device')} of "
        f"{there} "
        f"({cluster.gpu})"
    )
    more = (
        "take more of them (parallel.processes), or a cluster whose devices hold more (--cluster)"
    )
    if not nearest:
        return f"{what}: the rules of recipes allow none; {more}."
    close = min(nearest, key=lambda candidate: candidate.memory_bytes)
    missing = bytes_text(close.memory_bytes - cluster.memory_bytes)
    return (
        f"{what}: {missing} are missing on pipeline rank {close.memory_rank} where it comes "
        f"closest, with {describe(close.choice)}; {more}."
    )
