"""How jobs are started on a cluster, as its file says it: Slurm's words, and what ranks run in."""

from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import BeforeValidator, Field

from dsv3_plugin.planner.cluster_words import (
    Environment,
    EnvironmentFolder,
    FolderOfNode,
    Image,
    Lines,
    Mounts,
    Options,
    Word,
    runtime_today,
)
from dsv3_plugin.recipe.section import Section
from dsv3_plugin.recipe.yaml_text import in_line

_MOST_HOURS = 24 * 365
_MOST_TIMES = 1000
"""Of what is counted here: far beyond what anybody means."""


_OF_THE_SCRIPT = {
    "account": "launch.account", "array": "dsv3 launch --array", "chdir": "", "clusters": "",
    "dependency": "dsv3 launch --after", "error": "", "export": "launch.environment",
    "export-file": "launch.environment", "gpus": "gpus_per_node", "gpus-per-node": "gpus_per_node",
    "gpus-per-task": "gpus_per_node", "help": "", "input": "", "job-name": "the recipe's name",
    "kill-on-invalid-dep": "", "no-requeue": "", "nodes": "dsv3 launch --nodes", "ntasks": "",
    "ntasks-per-node": "", "open-mode": "", "output": "", "parsable": "",
    "partition": "launch.partition", "qos": "launch.qos", "requeue": "", "signal": "",
    "test-only": "", "time": "launch.time_limit_hours", "usage": "", "version": "", "wait": "",
    "wrap": "",
}  # fmt: skip
"""Options of sbatch that a job's script sets, or cannot do with: what says it in their place."""
_OF_A_WHOLE_NODE = ("exclusive", "mem", "mem-per-cpu", "mem-per-gpu", "oversubscribe")
"""Those that contradict `exclusive: true`."""
_OF_A_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_OF_THE_GPUS = (
    "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
)  # fmt: skip
_OF_THE_JOB = (
    "SLURM_JOB", "SLURM_ARRAY", "SLURM_STEP", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID",
)  # fmt: skip
_SET_AFTER = {
    "MASTER_ADDR": "where rank 0 is, which every start chooses among its nodes",
    "SLURM_CPU_BIND": "that ranks use all CPUs of their node",
    "SLURM_EXIT_ERROR": "by which code it knows that Slurm started nothing",
    "DSV3_LAUNCHED": "that the run was rehearsed",
}
"""Variables that a job's script sets whatever they were, and to what."""


class Container(Section):
    """An image that ranks run in, with dsv3 in it."""

    runtime: Annotated[Literal["pyxis", "apptainer"], BeforeValidator(runtime_today)]
    """pyxis: Slurm's plugin for enroot starts it (`--container-image`); apptainer: `apptainer
    exec` in every task."""
    image: Image
    """What pyxis or apptainer takes: a file, or a registry's name."""
    mounts: Mounts = Field(default=[])
    """`FROM:TO` each (`FROM` alone is there under its own path), beside what is there anyway: the
    folder that the job is submitted from, the run's, its checkpoints', that of the run it begins
    with, its texts and tokenizer, and `scratch`."""


class Launch(Section):
    """How jobs are started; nothing of it changes what a run computes."""

    partition: Word | None = None
    """Slurm's partition; null: its default."""
    account: Word | None = None
    """What Slurm charges; null: your default."""
    qos: Word | None = None
    """Slurm's quality of service; null: its default."""
    time_limit_hours: Annotated[float, Field(gt=0, le=_MOST_HOURS)] | None = None
    """Of one job, in whole minutes; null: the partition's. Near its end the run is saved, and the
    job goes back into the queue. One in which a job could hardly do a step is refused."""
    exclusive: bool = True
    """Whether a job has its nodes for itself."""
    options: Options = Field(default=[])
    """Further options of sbatch, such as `--constraint=ib`; those that the script sets itself are
    refused."""
    setup: Lines = Field(default=[])
    """Lines of shell, each a command of its own, before anything else that a job starts: `module
    load cuda/13.0`. What they export reaches every rank; `environment` and `venv` come after them,
    and a line that fails ends the job."""
    venv: EnvironmentFolder | None = None
    """The virtual environment that ranks run in; null: the Python that `dsv3 launch` runs with."""
    container: Container | None = None
    """An image in its place."""
    environment: Environment = Field(default={})
    """Variables of every rank: NCCL's, UCX's; a number is written as it stands. No shell reads
    them: what takes `$PATH` or `~` is a line of `setup`."""
    scratch: FolderOfNode | None = None
    """A folder on each node's own disk, which becomes TMPDIR."""
    scratch_gb: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    """What has to be free there before a run starts, 10⁹ bytes."""
    spares: Annotated[int, Field(ge=0, le=_MOST_TIMES)] = 0
    """Nodes asked for beyond those that the run needs, to take the place of one that fails its
    check."""
    drain: bool = True
    """Whether Slurm is told to give a node that failed its check to nobody (`State=DRAIN`), with
    the reason. It lets operators do so; to everybody else the job says the command."""
    # Llama 3's report (arXiv 2407.21783) counts 419 unexpected interruptions in 54 days on 16,384
    # GPUs: one a day on 2,048, where DeepSeek-V3 took two months.
    restarts: Annotated[int, Field(ge=0, le=_MOST_TIMES)] = 100
    """Failures that a job gets over, as long as it makes progress between them. What Slurm
    announces (the end of its time, a preemption that leaves time to save) is none."""

    @pydantic.field_validator("container", mode="before")
    @classmethod
    def _image_alone(cls, value: Any) -> Any:
        if isinstance(value, str):
            meant = in_line({"runtime": "pyxis", "image": value})
            if not value.strip():
                raise ValueError("it is empty: leave it out")
            raise ValueError(f"{in_line(value)} does not say what starts it: write {meant}")
        return value

    @pydantic.model_validator(mode="after")
    def _possible(self) -> Self:
        for option in self.options:
            name = option.removeprefix("--").partition("=")[0]
            refused = [*_OF_THE_SCRIPT, *(_OF_A_WHOLE_NODE if self.exclusive else ())]
            # Slurm takes an option by its beginning, too.
            own = next((known for known in refused if known.startswith(name)), None)
            if own is not None:
                instead = _OF_THE_SCRIPT.get(own, "launch.exclusive")
                way_out = f"say it with {instead}" if instead else "leave it out"
                raise ValueError(
                    f"{option} in options is for the script of a job to say: {way_out}"
                )
        for name in self.environment:
            if name in _OF_A_RANK or name.startswith(_OF_THE_JOB):
                raise ValueError(
                    f"{name} in environment would be the same for all ranks and jobs, which find "
                    "their places by it: leave it out"
                )
            if name in _OF_THE_GPUS and self.environment[name] not in ("all", "void"):
                raise ValueError(
                    f"{name} in environment would be the same on all nodes: which GPUs a job has "
                    "its launcher says, and each rank takes its own of them: leave it out, and say "
                    "with gpus_per_node how many a node has"
                )
            if name in _SET_AFTER:
                raise ValueError(
                    f"{name} in environment would be overwritten: the script of a job says by it "
                    f"{_SET_AFTER[name]}: leave it out"
                )
        if self.scratch is not None and "TMPDIR" in self.environment:
            raise ValueError(
                "TMPDIR in environment would be overwritten by scratch, which becomes it: leave "
                "one of them out"
            )
        if self.scratch is None and self.scratch_gb:
            raise ValueError(
                f"scratch_gb: {self.scratch_gb:g} is what has to be free in scratch, and there is "
                "no scratch: name the folder, or leave scratch_gb out"
            )
        return self

    def __hash__(self) -> int:
        """Of its text: what is planned for a cluster is looked up by it, and lists have no hash."""
        return hash(self.model_dump_json())
