"""`dsv3 plan --search`: the ways of running a recipe, ranked, and the best one as a recipe."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from dsv3_plugin.cli.plan_cases import Asked, Conditions, Run, say_what_is_unsuited
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.named import named
from dsv3_plugin.files.run_folder import RECIPE
from dsv3_plugin.machine import Machine
from dsv3_plugin.planner.search.begin import sizes_that_divide
from dsv3_plugin.planner.search.candidate import Ranking
from dsv3_plugin.planner.search.rank import rank
from dsv3_plugin.planner.search.write import write_recipe
from dsv3_plugin.recipe.places import run_at
from dsv3_plugin.report.plan.calibration import calibration_mapping, calibration_tables
from dsv3_plugin.report.plan.counts import counts_mapping
from dsv3_plugin.report.plan.ranking import ranking_mapping, ranking_tables
from dsv3_plugin.terminal.console import Console
from dsv3_plugin.terminal.lines import note, say_json


@dataclass(frozen=True)
class Search:
    """Where its answer goes. Each field is the option of its name."""

    json: bool
    write: Path | None

    def check(self) -> None:
        """Raise UserError for a file that cannot become a recipe, before a minute is spent."""
        if self.write is None:
            return
        if self.write.suffix not in (".yaml", ".yml"):
            raise UserError(f"--write writes a recipe, a .yaml file; {self.write} does not end so")
        if self.write.exists():
            raise UserError(f"{self.write} is there already: name another file, or remove it.")
        if not self.write.resolve().parent.is_dir():
            raise UserError(f"cannot write {self.write}: its folder is not there: make it first.")

    def answer(self, asked: Asked, conditions: Conditions) -> None:
        """Search, write the best recipe, and say what was found.

        Raises:
            UserError: no way of running it fits, or the recipe cannot be written.
        """
        more = sizes_that_divide(asked.what, asked.overrides)
        if more:
            note(f"dsv3: its sizes do not divide, so the search begins with {' '.join(more)}")
            asked = Asked(asked.what, (*asked.overrides, *more))
        run = conditions.searched(asked)
        found = rank(*run.planned, run.imbalance)
        if self.write is not None:
            write_recipe(found.best, self.write, asked.what, asked.overrides, conditions.cluster)
            say_what_is_unsuited(
                found.best.recipe, found.best.step_seconds, run.cluster, run.machine
            )
        if self.json:
            say_json(_mapping(run, found))
            return
        console = Console()
        if run.calibration is not None:
            console.print(calibration_tables(run.calibration), "", sep="\n")
        console.print(ranking_tables(found))
        if self.write is not None:
            console.print()
            line = line_of(str(self.write), asked, conditions, run)
            console.line_of(f"{self.write} is the first of them: {line}")


def line_of(written: str, asked: Asked, conditions: Conditions, run: Run) -> str:
    """The line that trains what was written: a job, where this machine has too few GPUs for it.

    A recipe that builds on a run's own has a folder of its own, and goes on with that run in its.
    """
    recipe, here = run.recipe, Machine.here()
    words = ["train", written]
    if run.cluster.host == "gpu" and recipe.parallel.processes > here.gpus:
        cluster = conditions.cluster or recipe.cluster_on(here)
        words = ["launch", written, "--cluster", cluster]
    if (folder := _run_of(asked)) is not None:
        words.append(f"directory={folder}")
    return shlex.join(["dsv3", *words])


def _run_of(asked: Asked) -> Path | None:
    """The folder of the run whose recipe was searched, unless another was asked for."""
    file = named(asked.what)
    run = run_at(file.parent) if file.name == RECIPE and file.is_file() else None
    if run is None or any(word.startswith("directory=") for word in asked.overrides):
        return None
    return run.root


def _mapping(run: Run, found: Ranking) -> dict[str, object]:
    told = counts_mapping(run.recipe.model, run.recipe.data.seq_length) | {
        "cluster": run.cluster.model_dump(mode="json"),
        "imbalance": run.imbalance,
        "processes": run.recipe.parallel.processes,
        "search": ranking_mapping(found),
    }
    if run.calibration is not None:
        told["calibration"] = calibration_mapping(run.calibration)
    return told
