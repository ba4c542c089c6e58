"""`dsv3 launch`: a recipe looked at, planned for a cluster, and handed to Slurm."""

import contextlib
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsv3_plugin.errors import UserError
from dsv3_plugin.files import locks
from dsv3_plugin.files.atomic import replace_file
from dsv3_plugin.files.full_disk import write_errors_as
from dsv3_plugin.files.named import named
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch import queue
from dsv3_plugin.launch.ending import is_done
from dsv3_plugin.launch.job_record import JobRecord, forget_stop, record_of, write_record
from dsv3_plugin.launch.job_script import script, torchrun
from dsv3_plugin.launch.job_values import JobValues, values_of
from dsv3_plugin.launch.status import LAUNCHED
from dsv3_plugin.planner.cluster import Cluster, load_cluster
from dsv3_plugin.planner.make import make_plan
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.recipe.overrides import parse
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.rehearsal.quick import refuse_what_upstream_would
from dsv3_plugin.training.resume import refuse_what_does_not_go_on

_SCRIPT = "job.sbatch"


@dataclass(frozen=True)
class Wanted:
    """What is to be launched.

    Attributes:
        name: a shipped recipe, or a path.
        overrides: `key=value` texts.
        cluster: a cluster's name, or the path of its file; None: what the recipe names.
        nodes: how many; None: as many as the ranks fill.
        after: a job, or the folder of a run, that has to end well first.
        array: `key=value,value,…`: a run for each value.
    """

    name: str
    overrides: tuple[str, ...] = ()
    cluster: str | None = None
    nodes: int | None = None
    after: str | None = None
    array: str | None = None

    @property
    def command(self) -> str:
        """The command line that asks for it."""
        options = (
            ("--cluster", self.cluster), ("--nodes", self.nodes),
            ("--after", self.after), ("--array", self.array),
        )  # fmt: skip
        given = [word for name, value in options if value is not None for word in (name, value)]
        return shlex.join(["dsv3", "launch", self.name, *map(str, given), *self.overrides])


@dataclass(frozen=True)
class Prepared:
    """A job that can be submitted.

    Attributes:
        values: what its script says.
        recipes: of its runs, in their order.
        wanted: what was asked for.
    """

    values: JobValues
    recipes: tuple[Recipe, ...]
    wanted: Wanted

    @property
    def script(self) -> str:
        return script(self.values)


def prepare(wanted: Wanted, tell: Callable[[str], object]) -> Prepared:
    """Look at a recipe, plan it, rehearse its configuration; nothing is written.

    Args:
        wanted: what is to be launched.
        tell: takes a sentence for the person.

    Raises:
        UserError: whatever would have cost the job its start.
    """
    cluster, cluster_key = _cluster(wanted)
    overrides = (*wanted.overrides, f"cluster={cluster_key}")
    words = list(_of_array(wanted, overrides))
    recipes = tuple(load_recipe(wanted.name, one, cluster.machine) for one in words)
    for recipe in recipes:
        refuse_what_does_not_go_on(recipe)
        refuse_unwritable_names(recipe)
    plan = make_plan(recipes[0], cluster, cluster.machine)
    values = values_of(
        recipes[0],
        plan,
        runs=[recipe.folder for recipe in recipes],
        nodes=wanted.nodes,
        after=None if wanted.after is None else job_to_wait_for(wanted.after),
        command=wanted.command,
        folder=Path.cwd(),
    )
    tell(f"{recipes[0].name} on {cluster.name}: {values.sentence}.")
    refuse_what_upstream_would(wanted.name, words[0], recipes[0], cluster.machine, tell)
    return Prepared(values, recipes, wanted)


def launch(prepared: Prepared) -> str:
    """Write a job's script and recipes into the folders of its runs, and submit it.

    Returns:
        Slurm's number of the job.

    Raises:
        UserError: a run has a job, or a process, already; Slurm does not take this one.
    """
    for command in ("sbatch", "squeue"):
        queue.need_slurm(command)
    values, recipes = prepared.values, prepared.recipes
    home = (recipes[0].folder if not values.is_array else recipes[0].folder.parent) / "launch"
    with contextlib.ExitStack() as stack:
        for recipe in recipes:
            stack.enter_context(_alone(recipe.run_folder))
        stack.enter_context(write_errors_as(lambda why: f"cannot write {home}: {why}"))
        home.mkdir(parents=True, exist_ok=True)
        for recipe in recipes:
            run = recipe.run_folder
            replace_file(run.launch / LAUNCHED, recipe.to_yaml().encode())
            forget_stop(run)
        replace_file(home / _SCRIPT, prepared.script.encode())
        job = queue.submit(str(home / _SCRIPT))
        for number, recipe in enumerate(recipes):
            one = f"{job}_{number}" if values.is_array else job
            output = _output(values.output, job, number)
            record = JobRecord(one, values.cluster.name, output, time.time())
            write_record(recipe.run_folder, record)
    return job


def torchrun_lines(prepared: Prepared) -> str:
    """The lines that start the run without Slurm, one for each node."""
    wanted = prepared.wanted
    return torchrun(prepared.values, [wanted.name, *wanted.overrides])


def job_to_wait_for(named_so: str) -> str | None:
    """The job of a number, or the last of a run; None where that run has come to its end.

    Raises:
        UserError: there is neither, or the run has no job any more and was not at its end.
    """
    number = named_so.partition("_")
    if all(part.isdecimal() for part in (number[0], number[2] or "0")) and number[0]:
        return named_so
    run = RunFolder(named(named_so))
    record = record_of(run)
    if record is None:
        raise UserError(
            f"--after {named_so} is neither a number of a job nor the folder of a run that was "
            "launched."
        )
    queue.need_slurm("squeue")
    if queue.queued([record.job]):
        return record.job
    if not is_done(load_recipe(run.launch / LAUNCHED)):
        raise UserError(
            f"--after {named_so}: job {record.job} of that run has ended, and the run is not at "
            f"its end: launch it again (dsv3 status {named_so} says how it ended), or leave "
            "--after out."
        )
    return None


def refuse_unwritable_names(recipe: Recipe) -> None:
    """Raise UserError for a folder that no line of a script can name."""
    for folder, way_out in (
        (recipe.folder, "choose another with directory=PATH"),
        (Path.cwd(), "call dsv3 launch in another"),
    ):
        if not str(folder).isprintable():
            raise UserError(
                f"the folder {folder} has characters that a script of Slurm cannot name: {way_out}."
            )


def _cluster(wanted: Wanted) -> tuple[Cluster, str]:
    """The cluster, and what names it in the recipe that is kept, wherever that is read."""
    name = wanted.cluster or load_recipe(wanted.name, wanted.overrides).cluster
    if name is None:
        raise UserError(
            f"{wanted.name} names no cluster: name one with --cluster (h800, or a YAML file)."
        )
    is_path = os.path.isfile(named(name))
    return load_cluster(name), str(named(name).resolve()) if is_path else name


def _of_array(wanted: Wanted, overrides: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The overrides of each run."""
    if wanted.array is None:
        yield tuple(overrides)
        return
    key = parse(wanted.array)
    values = [value.strip() for value in key.value.split(",")]
    if len(set(values)) < len(values) or not all(values) or "/" in key.value:
        raise UserError(
            f"--array {wanted.array}: name each value once, as in training.seed=1,2,3 (and what is "
            "part of a folder's name has no slash)."
        )
    base = load_recipe(wanted.name, [*overrides, f"{key.path}={values[0]}"])
    for value in values:
        folder = base.folder / f"{key.keys[-1]}-{value}"
        yield (*overrides, f"{key.path}={value}", f"directory={folder}")


@contextlib.contextmanager
def _alone(run: RunFolder) -> Iterator[None]:
    """Launch a run that has neither a job nor a process, and is launched by nobody else meanwhile.

    Raises:
        UserError: it has.
    """
    with run.held():  # a run under way
        pass
    lock = locks.take(run.launch)
    if lock is None:
        raise UserError(f"another dsv3 launch is submitting the run in {run.root}.")
    with lock:
        record = record_of(run)
        job = None if record is None else queue.queued([record.job]).get(record.job)
        if job is not None:
            raise UserError(
                f"the run in {run.root} is job {job.job} already, {job}: dsv3 cancel {run.root} "
                "ends it; another run needs a folder of its own, directory=PATH."
            )
        yield


def _output(pattern: str, job: str, number: int) -> str:
    """A file of Slurm's, its patterns filled in."""
    for mark, value in (("%j", job), ("%A", job), ("%a", str(number))):
        pattern = pattern.replace(mark, value)
    return pattern
