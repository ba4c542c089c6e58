"""Two recipes or runs beside each other: lines, and a mapping. No torch here."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.named import named
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch.relaunched import relaunched
from dsv3_plugin.launch.run_of_job import folder_meant, is_job
from dsv3_plugin.numbers import number_of, tokens_text
from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.recipe import yaml_text
from dsv3_plugin.recipe.differences import MISSING, Difference, differences, whole_recipe
from dsv3_plugin.recipe.places import run_at
from dsv3_plugin.report.losses import RunLosses, losses_of

_LONGEST = 90
"""Characters of a difference in one line."""
_CLUSTER = "cluster"
_MOST_OF_CLUSTERS = 12
"""Keys that are listed; of two kinds of devices nearly all differ."""


@dataclass(frozen=True)
class Compared:
    """Two recipes or runs.

    Attributes:
        a, b: as they were asked for.
        keys: in which they differ.
        cluster: keys in which the files of the clusters differ that they are planned for; `cluster`
            itself where one names none, or none that is there.
        losses: of each that is a run with steps; None otherwise.
        not_begun: those that are runs and wait for their jobs: what is compared is the recipe that
            they were launched with.
        relaunched: a sentence for each that goes on with another recipe than is compared.
    """

    a: str
    b: str
    keys: list[Difference]
    losses: tuple[RunLosses | None, RunLosses | None]
    not_begun: tuple[str, ...] = ()
    cluster: tuple[Difference, ...] = ()
    relaunched: tuple[str, ...] = ()

    @property
    def common(self) -> float | None:
        """Tokens that both runs have consumed; None where they are not two."""
        if None in self.losses:
            return None
        return min(run.tokens[-1] for run in self.losses)


def compared(a: str, b: str) -> Compared:
    """Compare two recipes or runs.

    Args:
        a, b: names or paths of recipes, or the folders of runs, or their jobs' numbers.

    Raises:
        UserError: one of them is neither, or cannot be read.
    """
    a, b = (_run_of_job(place) for place in (a, b))
    mine, theirs = whole_recipe(a), whole_recipe(b)
    keys = [one for one in differences(mine, theirs) if one.key != _CLUSTER]
    clusters = tuple(_clusters(mine.get(_CLUSTER), theirs.get(_CLUSTER)))
    runs = {one: run for one in dict.fromkeys((a, b)) if (run := _run(one)) is not None}
    waiting = [one for one, run in runs.items() if run.waits_to_begin]
    again = [
        f"{one}: {said}; what is compared is the one before, and {run.launched_with} is that one."
        for one, run in runs.items()
        if (said := relaunched(run)) is not None
    ]
    losses = (_losses(a), _losses(b))
    return Compared(a, b, keys, losses, tuple(waiting), clusters, tuple(again))


def _run_of_job(place: str) -> str:
    """What was asked for; the folder of its run where that is the number of a job."""
    return str(folder_meant(Path(place))) if is_job(place) else place


def _clusters(a: str | None, b: str | None) -> Iterator[Difference]:
    """What differs between two clusters, whatever their files are called: a run that was launched
    has its own copy."""
    if a == b:
        return
    try:
        if a is None or b is None:
            raise UserError("no cluster is named")
        mine, theirs = load_cluster(a), load_cluster(b)
    except UserError:  # of which nothing but its name is to be said
        yield Difference(_CLUSTER, a, b)
        return
    if found := differences(mine.model_dump(mode="json"), theirs.model_dump(mode="json")):
        if mine.name != theirs.name:
            yield Difference("name", mine.name, theirs.name)
        yield from found


def lines(found: Compared) -> Iterator[str]:
    """What differs, a line for each key, then how the runs stand."""
    if not found.keys:
        yield "The recipes are the same in all keys but their names and folders."
    yield from _of_keys(found.keys)
    if found.cluster:
        yield from ("", "The clusters that they are planned for:")
        yield from _of_keys(found.cluster[:_MOST_OF_CLUSTERS])
        if (more := len(found.cluster) - _MOST_OF_CLUSTERS) > 0:
            yield f"… and {number_of(more, 'more key', 'more keys')}"
    runs = [run for run in found.losses if run is not None]
    if runs or found.not_begun or found.relaunched:
        yield ""
    for name in found.not_begun:
        yield f"{name} has not begun: its recipe is the one that it was launched with."
    yield from found.relaunched
    widest = max((len(run.name) for run in runs), default=0)
    for run in runs:
        held_out = f", held out {run.held_out[-1][1]:.4f}" if run.held_out else ""
        speed = "" if run.speed is None else f", {run.speed:,.0f} tokens/s"
        yield (
            f"{run.name:{widest}}  step {run.steps[-1]:,}, {tokens_text(run.tokens[-1])} tokens, "
            f"loss {run.loss[-1]:.4f}{held_out}{speed}"
        )
    if found.common is not None:
        there = [run.loss_at(found.common) for run in runs]
        if None not in there:
            yield (
                f"At {tokens_text(found.common)} tokens: loss {there[0]:.4f} → {there[1]:.4f} "
                f"({there[1] - there[0]:+.4f})."
            )


def _of_keys(keys: Sequence[Difference]) -> Iterator[str]:
    for one in keys:
        a, b = _text(one.a), _text(one.b)
        if len(one.key) + len(a) + len(b) <= _LONGEST:
            yield f"{one.key}: {a} → {b}"
        else:
            yield from (f"{one.key}:", f"  {a}", f"  → {b}")


def mapping(found: Compared) -> dict[str, Any]:
    """The same for JSON, which knows no numbers that are not finite: null."""
    return {
        "a": found.a,
        "b": found.b,
        "keys": [_without_missing(asdict(one)) for one in found.keys],
        "cluster": [_without_missing(asdict(one)) for one in found.cluster],
        "losses": [None if run is None else _last(run) for run in found.losses],
        "not_begun": [*found.not_begun],
        "relaunched": [*found.relaunched],
    }


def _run(place: str) -> RunFolder | None:
    path = named(place)
    return run_at(path) if path.is_dir() else None


def _losses(place: str) -> RunLosses | None:
    run = _run(place)
    try:
        return None if run is None else losses_of(run, place)
    except UserError:  # no step yet
        return None


def _without_missing(difference: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in difference.items() if value != MISSING}


def _last(run: RunLosses) -> dict[str, Any]:
    held_out = run.held_out[-1][1] if run.held_out else math.nan
    last = {
        "step": run.steps[-1],
        "tokens": run.tokens[-1],
        "loss": run.loss[-1],
        "held_out_loss": held_out,
        "tokens_per_second": math.nan if run.speed is None else run.speed,
    }
    return {key: value if math.isfinite(value) else None for key, value in last.items()}


def _text(value: Any) -> str:
    """A value as YAML has it, in one line."""
    return value if value == MISSING else yaml_text.in_line(value)
