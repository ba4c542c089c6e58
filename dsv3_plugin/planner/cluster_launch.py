"""How jobs are started on a cluster, as its file says it: Slurm's words, and what ranks run in."""

from typing import Annotated, Literal

from pydantic import Field

from dsv3_plugin.recipe.section import Section

_WORD = r"^[\w.+@:/%-]+$"
_OPTION = r"^--[a-z][a-z-]*(=[^\s#]+)?$"
_ONE_LINE = r"^[^\x00-\x1f\x7f]*$"

Word = Annotated[str, Field(pattern=_WORD)]
OneLine = Annotated[str, Field(pattern=_ONE_LINE, min_length=1)]
_MOST_HOURS = 24 * 365
_MOST_TIMES = 1000
"""Of what is counted here: far beyond what anybody means."""


class Container(Section):
    """An image that ranks run in, with dsv3 in it."""

    runtime: Literal["pyxis", "apptainer"]
    """pyxis: Slurm's plugin for enroot starts it (`--container-image`); apptainer: `apptainer
    exec` in every task."""
    image: OneLine
    """What pyxis or apptainer takes: a file, or a registry's name."""
    mounts: list[OneLine] = Field(default=[])
    """`FROM:TO` each, beside the folder that the job is submitted from."""


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
    job goes back into the queue."""
    exclusive: bool = True
    """Whether a job has its nodes for itself."""
    options: list[Annotated[str, Field(pattern=_OPTION)]] = Field(default=[])
    """Further options of sbatch, such as `--constraint=ib`."""
    venv: OneLine | None = None
    """The virtual environment that ranks run in; null: the Python that `dsv3 launch` runs with."""
    container: Container | None = None
    """An image in its place."""
    environment: dict[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")], OneLine] = Field(default={})
    """Variables of every rank: NCCL's, UCX's."""
    scratch: OneLine | None = None
    """A folder on each node's own disk, which becomes TMPDIR."""
    scratch_gb: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    """What has to be free there before a run starts, 10⁹ bytes."""
    spares: Annotated[int, Field(ge=0, le=_MOST_TIMES)] = 0
    """Nodes asked for beyond those that the run needs, to take the place of one that fails its
    check."""
    # Llama 3's report (arXiv 2407.21783) counts 419 unexpected interruptions in 54 days on 16,384
    # GPUs: one a day on 2,048, where DeepSeek-V3 took two months.
    restarts: Annotated[int, Field(ge=0, le=_MOST_TIMES)] = 100
    """Failures that a job gets over, as long as it makes progress between them. What Slurm
    announces (the end of its time, a preemption that leaves time to save) is none."""

    def __hash__(self) -> int:
        """Of its text: what is planned for a cluster is looked up by it, and lists have no hash."""
        return hash(self.model_dump_json())
