"""What `dsv3 plan` was asked for, and the answer to it: recipes and models, with their plans."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dsv3_plugin.errors import UserError
from dsv3_plugin.machine import Machine
from dsv3_plugin.numbers import number_of
from dsv3_plugin.planner.cluster import Cluster, load_cluster
from dsv3_plugin.planner.make import make_plan
from dsv3_plugin.planner.patience import unsuited
from dsv3_plugin.planner.resolve import resolve
from dsv3_plugin.planner.time.timelines import step_timeline
from dsv3_plugin.recipe.hf_config import why_not_exported
from dsv3_plugin.recipe.load import load_recipe_or_model
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.report.plan.case import Case
from dsv3_plugin.terminal.lines import note
from dsv3_plugin.training.resume import refuse_what_does_not_go_on

if TYPE_CHECKING:
    from dsv3_plugin.planner.calibration.fit import Calibration

_OVERRIDE = re.compile(r"[\w-]+(\.[\w-]+)*=", re.ASCII)
_LENGTH = 4096
"""Of the sequences that a model alone is counted at."""


@dataclass(frozen=True)
class Asked:
    """A recipe or a model, and the overrides that stand behind it."""

    what: str
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return " ".join((self.what, *self.overrides))


def side_by_side(words: Sequence[str]) -> list[Asked]:
    """The recipes of a comparison, each with the overrides behind it.

    Raises:
        UserError: there is nothing to compare.
    """
    asked: list[Asked] = []
    for word in words:
        if _OVERRIDE.match(word) and asked:
            last = asked.pop()
            asked.append(Asked(last.what, (*last.overrides, word)))
        else:
            asked.append(Asked(word))
    if len(asked) < 2:
        raise UserError(
            f"--compare shows recipes side by side, and {asked[0].name} is alone: name another, "
            "or the same again with other overrides behind it"
        )
    return asked


@dataclass(frozen=True)
class Conditions:
    """Under which recipes are planned.

    Each field is the option of its name, and None is not given; `drawn` is whether there will be a
    picture of a step.
    """

    cluster: str | None
    imbalance: float | None
    calibrate: Path | None
    seq_length: int | None
    drawn: bool

    def check(self) -> None:
        """Raise UserError for what cannot be, whatever the recipe."""
        if self.imbalance is not None and not 1 <= self.imbalance < math.inf:
            raise UserError(
                "--imbalance is the load of the busiest rank's experts over the mean, 1 at "
                f"balance, and cannot be {self.imbalance:g}"
            )
        if self.seq_length is not None and self._planned is not None:
            raise UserError(
                f"--seq-length counts a model, and {self._planned} plans a run, whose sequences "
                f"its recipe sets: leave one out, or write data.seq_length={self.seq_length}"
            )

    @property
    def _planned(self) -> str | None:
        """The option that only a plan has a use for, if it is given."""
        if self.cluster is not None:
            return "--cluster"
        if self.calibrate is not None:
            return "--calibrate"
        return "--imbalance" if self.imbalance is not None else None

    def case(self, asked: Asked, alone: bool) -> Case:
        """The counts of what was asked for; of a recipe the plan, too.

        Args:
            asked: the recipe or the model.
            alone: whether it is all that was asked for; beside others, a model has its counts.

        Raises:
            UserError: it cannot be read, or planned.
        """
        found = load_recipe_or_model(asked.what, asked.overrides)
        if isinstance(found, ModelConfig):
            if alone and self._planned is not None:
                raise UserError(_is_a_model(asked, self._planned))
            _say_if_it_cannot_be_exported(found)
            return Case(asked.name, found, self.seq_length or _LENGTH)
        run = self.run(asked, found)
        recipe = run.recipe
        if self.seq_length is not None:
            return Case(asked.name, recipe.model, self.seq_length)
        plan = make_plan(*run.planned, run.imbalance)
        if alone:
            longest = max(phase.step_seconds for phase in plan.phases)
            say_what_is_unsuited(run.closed(), longest, run.cluster, run.machine)
        balanced = None if run.imbalance == 1 else make_plan(*run.planned)
        timeline = None
        if self.drawn and len(plan.longest.ranks) > 1:
            timeline = step_timeline(*run.planned, plan.longest.batch, run.imbalance)
        length = recipe.data.seq_length
        return Case(asked.name, recipe.model, length, plan, balanced, run.calibration, timeline)

    def searched(self, asked: Asked) -> "Run":
        """What a search begins with.

        Raises:
            UserError: it cannot be read, or is a model.
        """
        found = load_recipe_or_model(asked.what, asked.overrides)
        if isinstance(found, ModelConfig):
            raise UserError(_is_a_model(asked, "--search"))
        return self.run(asked, found)

    def run(self, asked: Asked, recipe: Recipe) -> "Run":
        """A recipe with where it is to run.

        Raises:
            UserError: there is no such cluster, or the recipe is not to be had there.
        """
        here = Machine.here()
        name = self.cluster or recipe.cluster
        cluster = load_cluster(name or recipe.cluster_on(here))
        machine = cluster.machine
        if name is None:  # nobody said what there is, so there is enough
            machine, cluster = here, _enlarged(cluster, recipe.parallel.processes)
        if recipe.backend == "auto":  # held to the rules as it is on that machine, too
            load_recipe_or_model(asked.what, asked.overrides, machine)
        refuse_what_does_not_go_on(recipe, data=False)  # of which it reads none
        _say_if_it_cannot_be_exported(recipe.model)
        imbalance, ranks = self.imbalance or 1.0, recipe.parallel.expert
        if imbalance > ranks:
            raise UserError(
                f"--imbalance {imbalance:g} is more than one of {number_of(ranks, 'rank')} has "
                "when all "
                f"tokens go to its experts (parallel.expert of {asked.name})"
            )
        calibration = None
        if self.calibrate is not None:
            calibration = _calibrated(self.calibrate, recipe, cluster)
            cluster = calibration.cluster
        return Run(recipe, cluster, machine, imbalance, calibration)


@dataclass(frozen=True)
class Run:
    """A recipe, and where and how it is to run.

    Attributes:
        recipe: as it was loaded.
        cluster: calibrated, where that was asked for.
        machine: what `auto` in the recipe is resolved for.
        imbalance: load of the busiest rank's experts over the mean.
        calibration: what was fitted, if it was.
    """

    recipe: Recipe
    cluster: Cluster
    machine: Machine
    imbalance: float
    calibration: "Calibration | None"

    def closed(self) -> Recipe:
        """The recipe as it would be trained there, with nothing left open.

        Raises:
            UserError: it fits in no layout.
        """
        return resolve(self.recipe, self.machine, self.cluster)

    @property
    def planned(self) -> tuple[Recipe, Cluster, Machine]:
        """What every question to the planner begins with."""
        return self.recipe, self.cluster, self.machine


def _is_a_model(asked: Asked, option: str) -> str:
    return (
        f"{asked.what} is a model, which says nothing of batches and ranks: {option} plans a "
        "recipe, such as pretrain/deepseek-v3"
    )


def _enlarged(cluster: Cluster, processes: int) -> Cluster:
    """A cluster with devices for so many processes, if it lacks them."""
    nodes = math.ceil(processes / cluster.gpus_per_node)
    return cluster.model_copy(update={"gpus": max(cluster.gpus, nodes * cluster.gpus_per_node)})


def _calibrated(path: Path, recipe: Recipe, cluster: Cluster) -> "Calibration":
    """The cluster by measured steps, with all that is to be said of them."""
    from dsv3_plugin.planner.calibration.fit import calibrate
    from dsv3_plugin.planner.calibration.measured import read_measurements

    measured = read_measurements(path, recipe, cluster)
    found = calibrate(cluster, measured.rows)
    return replace(found, notes=(*measured.notes, *found.notes))


def say_what_is_unsuited(
    recipe: Recipe, step_seconds: float, cluster: Cluster, machine: Machine
) -> None:
    """Warn of times and intervals that were made for other steps, or another cluster."""
    for sentence in unsuited(recipe, step_seconds, cluster, machine):
        note(f"Warning: {sentence}.")


def _say_if_it_cannot_be_exported(model: ModelConfig) -> None:
    if (reason := why_not_exported(model)) is not None:
        note(f"Warning: it can be trained, and its checkpoints cannot be exported: {reason}")
