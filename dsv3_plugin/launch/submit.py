"""`dsv3 launch`: a recipe looked at, planned for a cluster, and handed to Slurm."""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsv3_plugin.errors import UserError
from dsv3_plugin.files import locks
from dsv3_plugin.files.atomic import replace_file
from dsv3_plugin.files.full_disk import write_errors_as
from dsv3_plugin.files.named import named
from dsv3_plugin.files.run_folder import JOB_SCRIPT, SWEEP_SCRIPT, RunFolder
from dsv3_plugin.launch import manifests, queue
from dsv3_plugin.launch.after import job_to_wait_for
from dsv3_plugin.launch.ending import is_done, nothing_to_do
from dsv3_plugin.launch.idle_gpus import on_cluster
from dsv3_plugin.launch.job_record import JobRecord, forget_stop, write_record
from dsv3_plugin.launch.job_script import script, torchrun
from dsv3_plugin.launch.job_values import JobValues, of_sweep, values_of
from dsv3_plugin.launch.needs import lacking, read_by
from dsv3_plugin.launch.setup_lines import refuse_unreadable
from dsv3_plugin.launch.status import LAUNCHED
from dsv3_plugin.launch.taken import refuse_job
from dsv3_plugin.launch.wanted import Wanted, wanted_runs
from dsv3_plugin.planner.cluster import Cluster, load_cluster
from dsv3_plugin.planner.make import make_plan
from dsv3_plugin.planner.patience import unsuited
from dsv3_plugin.planner.resolve import resolve
from dsv3_plugin.recipe import yaml_text
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.rehearsal.quick import refuse_what_upstream_would
from dsv3_plugin.training.resume import refuse_what_does_not_go_on

_CLUSTER = "cluster.yaml"
"""In a run's `launch` folder: the cluster's file, as it was when the run was launched."""
_LOCK = ".lock"
_BEFORE, _BY_HAND = "dsv3 launch queues nothing before", "without that the run cannot begin"
"""What is said of what a job, or a run that is started otherwise, would lack."""


@dataclass(frozen=True)
class Prepared:
    """A job that can be submitted.

    Attributes:
        values: what its script says.
        recipes: of its runs, in their order.
        wanted: what was asked for.
        cluster_key: what names the cluster, wherever it is read.
        again: for each run the command that launches it once more.
    """

    values: JobValues
    recipes: tuple[Recipe, ...]
    wanted: Wanted
    cluster_key: str
    again: tuple[str, ...]

    @property
    def script(self) -> str:
        return script(self.values)

    @property
    def home(self) -> Path:
        """Where the script lies, and what it prints."""
        first = self.recipes[0].folder
        return (first.parent if self.values.is_array else first) / "launch"


def prepare(
    wanted: Wanted,
    tell: Callable[[str], object],
    *,
    is_submitted: bool = True,
    is_handed_over: bool = False,
    made_of_it: Callable[[Prepared], object] | None = None,
) -> Prepared | None:
    """Look at each run's recipe, plan it, rehearse its configuration; nothing is written.

    Args:
        wanted: what is to be launched.
        tell: takes a sentence for the person.
        is_submitted: whether a job of Slurm follows.
        is_handed_over: whether what is made of it is, as it is, to others who start it from this
            folder. Where neither is so, what it would lack is only told.
        made_of_it: makes what is started in a job's place, so that what it refuses is refused
            before the rehearsal.

    Returns:
        The job; None where one would be submitted, and all its runs are done, as is told.

    Raises:
        UserError: whatever would have cost the job, or one of its runs, its start.
    """
    cluster, cluster_key = _cluster(wanted)
    refuse_unreadable(cluster.launch.setup, cluster.name)
    runs = list(wanted_runs(wanted, (*wanted.overrides, f"cluster={cluster_key}")))
    recipes = []
    for run in runs:
        with _naming(run.value):
            recipe = load_recipe(wanted.name, run.overrides, cluster.machine)
            refuse_what_does_not_go_on(recipe)
            refuse_unwritable_names(recipe)
        recipes.append(recipe)
    done = [recipe for recipe in recipes if _has_ended(recipe)]
    for recipe in done:
        tell(nothing_to_do(recipe))
    if is_submitted and len(done) == len(recipes):
        return None
    _refuse_shared_checkpoints(recipes)
    after = None if wanted.after is None else job_to_wait_for(wanted.after)
    values, hints = [], []
    for run, recipe in zip(runs, recipes, strict=True):
        with _naming(run.value):
            plan = make_plan(recipe, cluster, cluster.machine)
            closed = resolve(recipe, cluster.machine, cluster)
            longest = max(phase.step_seconds for phase in plan.phases)
            hints += unsuited(closed, longest, cluster, cluster.machine)
            hints += on_cluster(recipe, cluster)
            one = values_of(
                recipe,
                plan,
                runs=[recipe.folder for recipe in recipes],
                nodes=wanted.nodes,
                after=after,
                command=wanted.command,
                folder=Path.cwd(),
                others=[folder for recipe in recipes for folder in _folders_of(recipe)],
            )
        values.append(one)
    job = values[0] if len(values) == 1 else of_sweep(values)
    tell(f"{recipes[0].name} on {cluster.name}: {job.sentence}.")
    prepared = Prepared(
        job, tuple(recipes), wanted, cluster_key, tuple(wanted.again(run) for run in runs)
    )
    if made_of_it is not None:
        made_of_it(prepared)
    for hint in dict.fromkeys(hints):
        tell(f"Note: {hint}.")
    _look_for_needs(recipes, job, wanted, tell, is_begun=is_submitted or is_handed_over)
    for run, recipe in zip(runs, recipes, strict=True):
        with _naming(run.value):
            refuse_what_upstream_would(wanted.name, run.overrides, recipe, cluster.machine, tell)
    return prepared


def _has_ended(recipe: Recipe) -> bool:
    """Whether a run has had all its tokens; none has whose conversations are not counted yet."""
    try:
        return is_done(recipe)
    except ValueError:
        return False


def launch(prepared: Prepared) -> list[str]:
    """Write a job's script and recipes into the folders of its runs, and submit it.

    Returns:
        Slurm's number of the job, or of each task of a sweep.

    Raises:
        UserError: a run has a job, or a process, already; Slurm does not take this one; or it
            cannot be written down which it is, and it is cancelled again.
    """
    for command in ("sbatch", "squeue", "scancel"):
        queue.need_slurm(command)
    values, recipes, home = prepared.values, prepared.recipes, prepared.home
    place = home / (SWEEP_SCRIPT if values.is_array else JOB_SCRIPT)
    with contextlib.ExitStack() as stack:
        stack.enter_context(write_errors_as(lambda why: f"cannot write {home}: {why}"))
        for folder in dict.fromkeys([home, *(recipe.run_folder.launch for recipe in recipes)]):
            stack.enter_context(_submitting(folder))
        for recipe in recipes:
            _refuse_taken(recipe.run_folder)
        for recipe in recipes:
            _keep(recipe, prepared)
        replace_file(place, prepared.script.encode())
        job = queue.submit(str(place))
        jobs = [f"{job}_{n}" for n in range(len(recipes))] if values.is_array else [job]
        with _or_cancelled(job):
            for number, (recipe, one) in enumerate(zip(recipes, jobs, strict=True)):
                output = _output(values.output, job, number)
                again = prepared.again[number]
                record = JobRecord(one, values.cluster.name, output, time.time(), again)
                write_record(recipe.run_folder, record)
    return jobs


def torchrun_lines(prepared: Prepared) -> str:
    """The lines that start the run without Slurm, one for each node."""
    return torchrun(prepared.values, _words(prepared))


def kubernetes_manifest(prepared: Prepared) -> str:
    """The run as a PyTorchJob."""
    return manifests.kubernetes(prepared.values, _words(prepared), prepared.cluster_key)


def skypilot_task(prepared: Prepared) -> str:
    """The run as a task of SkyPilot's."""
    return manifests.skypilot(prepared.values, _words(prepared), prepared.cluster_key)


def _words(prepared: Prepared) -> list[str]:
    """The recipe and its overrides."""
    wanted = prepared.wanted
    cluster = [] if wanted.cluster is None else [f"cluster={prepared.cluster_key}"]
    return [wanted.name, *wanted.overrides, *cluster]


def refuse_unwritable_names(recipe: Recipe) -> None:
    """Raise UserError for a folder that no line of a script can name."""
    for folder, way_out in (
        (recipe.folder, "choose another with directory=PATH"),
        (Path.cwd(), "call dsv3 launch in another"),
    ):
        if not str(folder).isprintable() or "\\" in str(folder):
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


def _look_for_needs(
    recipes: Sequence[Recipe],
    job: JobValues,
    wanted: Wanted,
    tell: Callable[[str], object],
    *,
    is_begun: bool,
) -> None:
    """Tell what a job may lack.

    Raises:
        UserError: it would be begun, and certainly fail.
    """
    waits, by_slurm = wanted.after is not None, wanted.way is None
    lacks = dict.fromkeys(
        lack
        for recipe in recipes
        for lack in lacking(
            recipe, job.cluster.launch, job.place, job.folder, waits=waits, by_slurm=by_slurm
        )
    )
    certain = [lack.sentence for lack in lacks if lack.certain and is_begun]
    for lack in lacks:
        if lack.sentence not in certain:
            before = f"; {_BEFORE if by_slurm else _BY_HAND}"
            more = before if lack.certain else ""
            tell(f"Note: {lack.sentence}{more}.")
    if certain:
        raise UserError(f"{recipes[0].name}: {'; '.join(certain)}.")


@contextlib.contextmanager
def _naming(value: str | None) -> Iterator[None]:
    """What is wrong with one run of a sweep says with which."""
    try:
        yield
    except UserError as error:
        if value is None:
            raise
        raise UserError(f"the run with {value}: {error}") from error


def _refuse_shared_checkpoints(recipes: Sequence[Recipe]) -> None:
    """Raise UserError where runs of a sweep would overwrite each other's checkpoints."""
    folders = [recipe.checkpoint_folder.resolve() for recipe in recipes]
    if len(set(folders)) < len(folders):
        raise UserError(
            f"the runs of a sweep would all keep their checkpoints in {folders[0]}: leave "
            "checkpoint.directory out, and each has those in its own folder."
        )


def _folders_of(recipe: Recipe) -> Iterator[Path]:
    """What is read and written beside the folder that a run is launched from.

    Of a folder that is not there yet, the nearest that is: nothing else can be mounted. What is
    read is mounted by itself, since what lies beside it may hide what the image has there.
    """
    named_so = [recipe.folder, recipe.checkpoint_folder, recipe.data_folder]
    parent = getattr(recipe, "from_", None)
    if parent is not None and named(parent).exists():
        named_so.append(named(parent))
    for folder in named_so:
        there = Path.cwd() / folder
        while not there.is_dir():
            there = there.parent
        if there != Path(there.anchor):
            yield Path(os.path.normpath(there))
    for path in read_by(recipe):
        if (there := Path.cwd() / path).exists():
            yield Path(os.path.normpath(there))
            yield Path(os.path.realpath(there))  # a link leads there in the image, too


def _keep(recipe: Recipe, prepared: Prepared) -> None:
    """Keep what a run is launched with: what is edited afterwards is for the next launch."""
    run = recipe.run_folder
    if os.path.isabs(prepared.cluster_key):
        cluster = prepared.values.cluster.model_dump(mode="json")
        replace_file(run.launch / _CLUSTER, yaml_text.dump(cluster).encode())
        recipe = recipe.model_copy(update={"cluster": _CLUSTER})  # found beside the recipe
    replace_file(run.launch / LAUNCHED, recipe.to_yaml().encode())
    forget_stop(run)


@contextlib.contextmanager
def _submitting(folder: Path) -> Iterator[None]:
    """Be the only one that submits from a folder, over NFS too.

    Raises:
        UserError: somebody else does.
    """
    lock = locks.take(folder, _LOCK)
    if lock is None:
        raise UserError(f"another dsv3 launch is submitting the run in {folder.parent}.")
    with lock:
        yield


def _refuse_taken(run: RunFolder) -> None:
    """Raise UserError for a run that has a job or a process already."""
    refuse_job(run)
    with run.held():  # a run under way
        pass


@contextlib.contextmanager
def _or_cancelled(job: str) -> Iterator[None]:
    """A job of which nothing could be written down is one that nobody sees or ends: cancel it.

    Raises:
        UserError: instead of OSError, with what became of the job.
    """
    try:
        yield
    except BaseException as error:
        became = f"job {job}, which Slurm had taken, is cancelled again"
        try:
            queue.cancel(job)
        except UserError as refused:
            became = f"and job {job} is in the queue still, end it with scancel {job} ({refused})"
        if isinstance(error, OSError | UserError):
            said = error.strerror if isinstance(error, OSError) else str(error)
            raise UserError(
                f"it cannot be written down which job it is ({said}): {became}"
            ) from error
        raise


def _output(pattern: str, job: str, number: int) -> str:
    """A file of Slurm's, its patterns filled in."""
    marks = {"%": "%", "j": job, "A": job, "a": str(number)}
    return re.sub("%([%jAa])", lambda found: marks[found[1]], pattern)
