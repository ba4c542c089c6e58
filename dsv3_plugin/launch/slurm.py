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
from dsv3_plugin.launch.variables import number

_RENAMED = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}

_FIRST_PORT, _PORTS = 20_000, 10_000
"""Below the ports (32768 on) that Linux gives to outgoing connections."""


def is_task(environment: Mapping[str, str]) -> bool:
    """Whether srun started this process as one task of several.

    A step of one task (an interactive shell, a batch script) is an ordinary place to be: there
    `dsv3 train` starts the ranks itself.

    Raises:
        UserError: Slurm's number of tasks is none.
    """
    if not {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS"} <= environment.keys():
        return False
    return number(environment, "SLURM_STEP_NUM_TASKS", least=1) > 1


def variables(
    environment: Mapping[str, str], first_host: Callable[[str], str] | None = None
) -> dict[str, str]:
    """The variables that torch.distributed reads, as far as they are not set already.

    Args:
        environment: of this process.
        first_host: the first name of a node list; `scontrol show hostnames` by default.

    Raises:
        UserError: a variable is missing or no number, or Slurm's own tool cannot read the node
            list.
    """
    found = {
        name: str(number(environment, slurm, least=0))
        for name, slurm in _RENAMED.items()
        if slurm in environment and name not in environment
    }
    per_node = environment.get("SLURM_STEP_TASKS_PER_NODE")
    if per_node is not None and "LOCAL_WORLD_SIZE" not in environment:
        node = number({"SLURM_NODEID": "0", **environment}, "SLURM_NODEID", least=0)
        found["LOCAL_WORLD_SIZE"] = str(tasks_on_node(per_node, node))
    if "MASTER_ADDR" not in environment:
        nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
        if not nodes:
            raise UserError(
                "neither SLURM_STEP_NODELIST nor SLURM_JOB_NODELIST is set: set MASTER_ADDR to "
                "the name of the first node."
            )
        found["MASTER_ADDR"] = (first_host or _first_host)(nodes)
    if "MASTER_PORT" not in environment:
        job = number(environment, "SLURM_JOB_ID", least=0)
        step = number({"SLURM_STEP_ID": "0", **environment}, "SLURM_STEP_ID", least=0)
        found["MASTER_PORT"] = str(_FIRST_PORT + (job * 100 + step) % _PORTS)
    return {name: value for name, value in found.items() if name not in environment}


def tasks_on_node(written: str, node: int) -> int:
    """The entry `node` of a list like `8(x3),4`, Slurm's way of writing 8,8,8,4.

    Raises:
        UserError: it is no such list, or has no such entry.
    """
    passed = 0
    for entry in written.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", entry, re.ASCII)
        if match is None:
            break
        passed += int(match[2] or 1)
        if node < passed:
            return int(match[1])
    raise UserError(
        f"SLURM_STEP_TASKS_PER_NODE is {written!r}, which says nothing of node {node}: set "
        "LOCAL_WORLD_SIZE to the number of tasks on this node."
    )


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
