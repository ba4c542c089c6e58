"""What a job's script says, from a recipe, a plan and a cluster's file. Pure; no torch here."""

import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dsv3_plugin.errors import UserError
from dsv3_plugin.launch import time_limit
from dsv3_plugin.launch.starts import NOT_STARTED
from dsv3_plugin.numbers import number_of, time_text
from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.planner.plan import Plan
from dsv3_plugin.recipe.schema import Recipe

_NAMED = 4
"""Numbers of nodes that a sentence has."""
FOR_LAST_WORDS_S = 120
"""How long ranks may outlive the first that ended, before srun ends them. Where a connection breaks
they find out whom they lost in ten seconds, and NCCL's flight recorder is written in a minute; for
those that NCCL leaves waiting hundreds of GPUs would do nothing meanwhile."""


@dataclass(frozen=True)
class Placement:
    """How ranks are placed on nodes.

    Attributes:
        nodes: that the run needs.
        ranks_per_node: on each.
        spares: nodes asked for beyond those.
    """

    nodes: int
    ranks_per_node: int
    spares: int

    @property
    def sentence(self) -> str:
        """What the nodes are for that are asked for."""
        runs = "runs" if self.nodes == 1 else "run"
        takes = "takes" if self.spares == 1 else "take"
        return (
            f"{number_of(self.nodes, 'node')} {runs}; {self.spares:,} {takes} the place of what "
            "fails its check."
        )


@dataclass(frozen=True)
class Place:
    """Where a job's commands run: words before them.

    Attributes:
        python: the interpreter there.
        step_options: of every srun.
        in_step: before a command in a task of srun.
        alone: before a command of the script itself, on its first node.
        venv: to be activated first.
        mounts: `FROM:TO` each, what an image sees of its node.
    """

    python: str
    step_options: tuple[str, ...] = ()
    in_step: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    venv: str | None = None
    mounts: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobValues:
    """What the template of a job's script names.

    Attributes:
        name: of the job.
        command: what wrote it.
        sentence: what the run needs, by its plan.
        seconds: of the run, by its plan.
        folder: where the job is submitted from.
        runs: the runs' folders: one, or those of a sweep.
        output: the file of what the script prints, with Slurm's patterns.
        placement, place: how and where ranks run.
        gpus_per_node: to ask Slurm for; 0 on CPUs.
        on_gpu: whether ranks compute on GPUs.
        minutes: the time limit; None: the partition's.
        notice_s: how long before its end the run begins to save.
        wait_s: how long ranks may outlive the first that ended.
        check_minutes: what the check of the nodes may take.
        free_bytes: on the disk of its checkpoints, before it starts.
        after: the job that has to end well first.
    """

    name: str
    command: str
    sentence: str
    seconds: float
    folder: Path
    runs: tuple[Path, ...]
    output: str
    placement: Placement
    place: Place
    gpus_per_node: int
    on_gpu: bool
    minutes: int | None
    notice_s: int
    wait_s: int
    check_minutes: int
    free_bytes: int
    after: str | None
    cluster: Cluster

    @property
    def is_array(self) -> bool:
        return len(self.runs) > 1

    @property
    def nodes_asked(self) -> int:
        """Of Slurm, spares included."""
        return self.placement.nodes + self.placement.spares

    @property
    def ranks(self) -> int:
        return self.placement.nodes * self.placement.ranks_per_node

    @property
    def not_started(self) -> int:
        """srun's exit code where Slurm does not start what it is asked for."""
        return NOT_STARTED

    @property
    def in_step(self) -> list[str]:
        """Words of srun's before the module that a task runs."""
        place = self.place
        return [*place.step_options, *place.in_step, place.python, "-m"]

    @property
    def alone(self) -> list[str]:
        """Words before `-m` of what the script itself runs."""
        return [*self.place.alone, self.place.python]

    @property
    def torchrun(self) -> list[str]:
        """Words that start torchrun where ranks run."""
        venv = self.place.venv
        command = "torchrun" if venv is None else os.path.join(venv, "bin", "torchrun")
        return [*self.place.in_step, command]

    @property
    def check_options(self) -> list[str]:
        """What a node is checked for."""
        launch = self.cluster.launch
        options = [f"--free={self.free_bytes}"]
        if self.on_gpu:
            options.append(f"--gpus={self.gpus_per_node}")
        if launch.scratch is not None:
            free = round(launch.scratch_gb * 1e9)
            options += [f"--scratch={launch.scratch}", f"--scratch-free={free}"]
        return options


def values_of(
    recipe: Recipe,
    plan: Plan,
    *,
    runs: Sequence[Path],
    nodes: int | None,
    after: str | None,
    command: str,
    folder: Path,
    others: Sequence[Path] = (),
) -> JobValues:
    """What the script of a job says.

    Args:
        recipe: the run; the first of a sweep.
        plan: of it, on the cluster.
        runs: the folders of the runs.
        nodes: how many, if that was said.
        after: the job to wait for.
        command: what it is written by.
        folder: where it is submitted from.
        others: folders beside that one which ranks read or write.

    Raises:
        UserError: the run does not fit on the cluster, or into its time limit.
    """
    cluster = plan.cluster
    if recipe.host == "gpu" and cluster.host == "cpu":
        raise UserError(
            f"{recipe.name} on {cluster.name}: the recipe computes on GPUs (host: gpu), and the "
            "cluster's file says host: cpu: name another with --cluster, or take host=auto."
        )
    if not plan.limit.fits:
        way_out = f"; {plan.limit.way_out}" if plan.limit.way_out else ""
        raise UserError(f"{recipe.name} on {cluster.name}: {plan.limit.sentence}{way_out}.")
    placement = placed(recipe, cluster, nodes)
    minutes, parts = time_limit.minutes_of(cluster), time_limit.spent(recipe, plan)
    time_limit.refuse_too_short(f"{recipe.name} on {cluster.name}", minutes, parts)
    on_gpu = cluster.host == "gpu" and recipe.host != "cpu"
    home, marks = folder / runs[0], "%j"
    if len(runs) > 1:
        home, marks = home.parent, "%A_%a"
    output = f"{literally(home / 'launch')}/job-{marks}.out"
    return JobValues(
        name=job_name(recipe.name),
        command=command,
        sentence=_sentence(plan, minutes),
        seconds=plan.seconds,
        folder=folder,
        runs=tuple(runs),
        output=output,
        placement=placement,
        place=place_on(cluster, folder, others),
        gpus_per_node=cluster.gpus_per_node if on_gpu else 0,
        on_gpu=on_gpu,
        minutes=minutes,
        notice_s=parts.notice,
        wait_s=FOR_LAST_WORDS_S,
        check_minutes=math.ceil(recipe.parallel.timeout_minutes),
        free_bytes=max(phase.checkpoint_bytes for phase in plan.phases),
        after=after,
        cluster=cluster,
    )


def of_sweep(values: Sequence[JobValues]) -> JobValues:
    """What the one script of all runs of a sweep says: Slurm gives each task the same.

    Raises:
        UserError: they need other nodes than each other.
    """
    first = values[0]
    longest = max(values, key=lambda one: one.seconds)
    for other in values[1:]:
        if (other.placement, other.on_gpu) != (first.placement, first.on_gpu):
            raise UserError(
                f"the runs of a sweep are tasks of one job, on as many nodes each: {first.name} "
                f"takes {_nodes(first)} for one value and {_nodes(other)} for another; launch them "
                "one by one, or set parallel.processes and host alike."
            )
    return replace(
        first,
        sentence=f"{number_of(len(values), 'run')}, the longest: {longest.sentence}",
        seconds=longest.seconds,
        notice_s=max(one.notice_s for one in values),
        check_minutes=max(one.check_minutes for one in values),
        free_bytes=max(one.free_bytes for one in values),
    )


def _nodes(values: JobValues) -> str:
    where = "GPUs" if values.on_gpu else "CPUs"
    ranks, nodes = number_of(values.ranks, "rank"), number_of(values.placement.nodes, "node")
    return f"{ranks} on {nodes} ({where})"


def literally(path: Path) -> str:
    """A path in a file name of Slurm's, in which `%` begins a pattern."""
    return str(path).replace("%", "%%")


def placed(recipe: Recipe, cluster: Cluster, nodes: int | None) -> Placement:
    """How the ranks of a run are placed on the nodes of a cluster.

    Raises:
        UserError: they do not divide evenly, or there are too few nodes.
    """
    processes, there = recipe.parallel.processes, cluster.gpus // cluster.gpus_per_node
    wanted = nodes or math.ceil(processes / cluster.gpus_per_node)
    where = f"{recipe.name} on {cluster.name}"
    if processes % wanted:
        raise UserError(
            f"{where}: {number_of(processes, 'rank')} cannot be divided evenly among "
            f"{number_of(wanted, 'node')}: {_other_numbers(processes, cluster)}set "
            "parallel.processes."
        )
    if processes // wanted > cluster.gpus_per_node:
        raise UserError(
            f"{where}: {number_of(processes, 'rank')} on {number_of(wanted, 'node')} are "
            f"{processes // wanted} on each, which has "
            f"{number_of(cluster.gpus_per_node, 'device')}: take "
            f"--nodes {math.ceil(processes / cluster.gpus_per_node)}, or lower parallel.processes."
        )
    spares = cluster.launch.spares
    if wanted > there:
        raise UserError(
            f"{where}: it takes {number_of(wanted, 'node')}, and there are {there:,}: lower "
            "--nodes, or name "
            "a larger cluster with --cluster."
        )
    if wanted + spares > there:
        raise UserError(
            f"{where}: the run takes {number_of(wanted, 'node')} of {there:,}, which leaves "
            f"{there - wanted:,} for the {number_of(spares, 'spare')} of launch.spares: lower it "
            "in the "
            "cluster's file, or take fewer ranks (parallel.processes)."
        )
    return Placement(wanted, processes // wanted, spares)


def _other_numbers(processes: int, cluster: Cluster) -> str:
    """Among how many nodes of a cluster so many ranks can be divided, as a way out."""
    there, most = cluster.gpus // cluster.gpus_per_node, cluster.gpus_per_node
    fit = [n for n in range(1, there + 1) if processes % n == 0 and processes // n <= most]
    if not fit:
        return ""
    *some, last = map(str, fit[:_NAMED])
    return f"take --nodes {f'{", ".join(some)} or {last}' if some else last}, or "


def place_on(cluster: Cluster, folder: Path, others: Sequence[Path] = ()) -> Place:
    """Where a job's commands run, by the cluster's file.

    Args:
        cluster: says what they run in.
        folder: where the job is submitted from.
        others: folders and files beside that one which they read or write; those that the
            cluster's file mounts are left to it.

    Raises:
        UserError: a folder cannot be mounted into an image.
    """
    container, venv = cluster.launch.container, cluster.launch.venv
    if container is None:
        python = sys.executable if venv is None else os.path.join(venv, "bin", "python")
        return Place(python, venv=venv)
    scratch = [] if cluster.launch.scratch is None else [Path(cluster.launch.scratch)]
    theirs = [Path([*mount.split(":"), mount][1]) for mount in container.mounts]
    more = [path for path in others if not any(path.is_relative_to(one) for one in theirs)]
    folders = (*_mounts([folder, *more, *scratch]), *container.mounts)
    mounts = ",".join(folders)
    if container.runtime == "apptainer":
        words = ["apptainer", "exec", "--nv"] if cluster.host == "gpu" else ["apptainer", "exec"]
        inside = (*words, f"--bind={mounts}", f"--pwd={folder}", container.image)
        return Place("python3", in_step=inside, alone=inside, mounts=folders)
    options = (
        f"--container-image={container.image}",
        f"--container-mounts={mounts}",
        f"--container-workdir={folder}",
    )
    return Place(
        "python3",
        step_options=options,
        alone=("srun", "--overlap", "--nodes=1", "--ntasks=1", *options),
        mounts=folders,
    )


def _mounts(folders: Sequence[Path]) -> list[str]:
    """What an image needs of the node's file systems, under the same paths."""
    needed: list[Path] = []
    for folder in folders:
        if any(character in str(folder) for character in ":,"):
            raise UserError(
                f"the folder {folder} cannot be mounted into a container: its name has a colon or "
                "a comma; choose another."
            )
        if not any(folder.is_relative_to(there) for there in needed):
            needed.append(folder)
    return [f"{folder}:{folder}" for folder in needed]


def job_name(name: str) -> str:
    """A recipe's name as that of a job, in characters that every tool of Slurm shows."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-") or "dsv3"


def _sentence(plan: Plan, minutes: int | None) -> str:
    """What the run needs."""
    said = f"{number_of(plan.steps, 'step')}, {time_text(plan.seconds)} by its plan"
    if minutes is not None and (times := math.ceil(plan.seconds / (60 * minutes))) > 1:
        said += f", {times:,} times the limit of {time_text(60 * minutes)}"
    return f"{said}; {plan.limit.sentence}"
