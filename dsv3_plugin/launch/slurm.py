"""Being one task of `srun`: what torch.distributed asks for, from what Slurm says.

    srun --ntasks 16 --ntasks-per-node 8 dsv3 train RECIPE

Every task becomes a rank. Its number, the number of tasks and its place on the node stand in
Slurm's variables; where the ranks gather does not: rank 0 runs on the first node of the step's
list, and the port follows from the number of job and step, so that all tasks find the same one
without asking each other.
"""

import re
import subprocess
from collections.abc import Callable, Mapping

from dsv3_plugin.errors import UserError

_RENAMED = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}

_FIRST_PORT, _PORTS = 20_000, 10_000
"""Below the ports (32768 on) that Linux gives to outgoing connections."""


def is_task(environment: Mapping[str, str]) -> bool:
    """Whether srun started this process as one task of several.

    A step of one task (an interactive shell, a batch script) is an ordinary place to be: there
    `dsv3 train` starts the ranks itself.
    """
    return "SLURM_PROCID" in environment and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def variables(
    environment: Mapping[str, str], first_host: Callable[[str], str] | None = None
) -> dict[str, str]:
    """The variables that torch.distributed reads, as far as they are not set already.

    Args:
        environment: of this process.
        first_host: the first name of a node list; `scontrol show hostnames` by default.

    Raises:
        UserError: Slurm's own tool cannot read the node list.
    """
    found = {name: environment[slurm] for name, slurm in _RENAMED.items() if slurm in environment}
    per_node = environment.get("SLURM_STEP_TASKS_PER_NODE")
    node = int(environment.get("SLURM_NODEID", "0"))
    if per_node is not None:
        found["LOCAL_WORLD_SIZE"] = str(tasks_on_node(per_node, node))
    if "MASTER_ADDR" not in environment:
        nodes = environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]
        found["MASTER_ADDR"] = (first_host or _first_host)(nodes)
    job, step = int(environment["SLURM_JOB_ID"]), int(environment.get("SLURM_STEP_ID", "0"))
    found["MASTER_PORT"] = str(_FIRST_PORT + (job * 100 + step) % _PORTS)
    return {name: value for name, value in found.items() if name not in environment}


def tasks_on_node(written: str, node: int) -> int:
    """The entry `node` of a list like `8(x3),4`, Slurm's way of writing 8,8,8,4."""
    counts: list[int] = []
    for entry in written.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", entry)
        assert match is not None, f"tasks per node: {written}"
        counts += [int(match[1])] * int(match[2] or 1)
    return counts[node]


def _first_host(nodes: str) -> str:
    command = ["scontrol", "show", "hostnames", nodes]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        return answer.stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise UserError(
            f"`scontrol show hostnames {nodes}` does not say where rank 0 is: set MASTER_ADDR to "
            "the name of the first node."
        ) from error
