"""Where this process stands among the ranks of a run, as its launcher's environment says it.

torchrun, srun and the job operators of Kubernetes set the variables that torch.distributed reads.
They are looked at once, here, so that whatever reads them afterwards finds numbers that fit each
other. No torch here.
"""

from collections.abc import Mapping

from dsv3_plugin.errors import UserError
from dsv3_plugin.launch import slurm
from dsv3_plugin.launch.variables import number
from dsv3_plugin.numbers import number_of

_LAUNCHED = ("RANK", "WORLD_SIZE")


def under_a_launcher(environment: Mapping[str, str]) -> bool:
    """Whether a launcher started this process as one rank of a run.

    Raises:
        UserError: the environment says one half of it.
    """
    given = [name for name in _LAUNCHED if name in environment]
    if slurm.is_task(environment) or len(given) == len(_LAUNCHED):
        return True
    if given:
        [missing] = set(_LAUNCHED) - set(given)
        raise UserError(
            f"{given[0]} is set in the environment and {missing} is not, and a launcher sets both: "
            f"set {missing}, or unset {given[0]} to let dsv3 start the ranks on this machine."
        )
    return False


def place(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of this rank that torch.distributed reads, complete and checked.

    Kubernetes' operators set no LOCAL_RANK: one process per pod is its first.

    Raises:
        UserError: one is missing or no number, or two contradict each other.
    """
    told = dict(environment)
    if slurm.is_task(environment):
        told |= slurm.variables(environment)
    world_size = number(told, "WORLD_SIZE", least=1)
    rank = number(told, "RANK", least=0)
    if rank >= world_size:
        raise UserError(
            f"RANK {rank} and WORLD_SIZE {world_size} in the environment contradict each other: "
            f"ranks are numbered from 0 to {world_size - 1}."
        )
    here = world_size
    if "LOCAL_WORLD_SIZE" in told:
        here = number(told, "LOCAL_WORLD_SIZE", least=1)
        if here > world_size:
            raise UserError(
                f"LOCAL_WORLD_SIZE {here} and WORLD_SIZE {world_size} in the environment "
                "contradict each other: a machine cannot have more ranks than there are."
            )
    if "LOCAL_RANK" not in told and told.get("LOCAL_WORLD_SIZE", "1") == "1":
        told["LOCAL_RANK"] = "0"
    local_rank = number(told, "LOCAL_RANK", least=0)
    if local_rank >= here:
        raise UserError(
            f"LOCAL_RANK is {local_rank} in the environment and this machine has "
            f"{number_of(here, 'rank')}: they are numbered from 0 to {here - 1}."
        )
    return {name: value for name, value in told.items() if environment.get(name) != value}


def check_meeting_place(environment: Mapping[str, str]) -> None:
    """Look whether the environment says where the ranks meet.

    Raises:
        UserError: it does not.
    """
    if not environment.get("MASTER_ADDR"):
        raise UserError(
            "MASTER_ADDR is not set in the environment: set it to the name or address of rank 0's "
            "machine on every rank, and MASTER_PORT to a free port there."
        )
    number(environment, "MASTER_PORT", least=1, most=65535)
