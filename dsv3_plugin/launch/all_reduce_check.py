"""`python -m dsv3_plugin.launch.all_reduce_check RUN`: do the ranks of a run reach each other?

One process for each rank, as the run will be started, on the nodes that are well by themselves. It
joins a world as the run does, and adds one number up over NCCL or gloo. What it leaves in the run's
folder says how far each rank came (`launch/node_verdicts.py`).
"""

import datetime
import os
import sys
from pathlib import Path

from dsv3_plugin.errors import UserError
from dsv3_plugin.launch import slurm
from dsv3_plugin.launch.node_check import node_name
from dsv3_plugin.launch.node_verdicts import rank_file
from dsv3_plugin.launch.place import check_meeting_place, place
from dsv3_plugin.launch.status import LAUNCHED
from dsv3_plugin.machine import Machine
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.terminal.lines import note


def add_up(run: Path) -> None:
    """Add one number up among all ranks.

    Raises:
        UserError: the ranks do not meet, or the sum is wrong.
    """
    if not slurm.is_task(os.environ):  # one rank reaches itself
        return
    os.environ.update(place(os.environ))
    check_meeting_place(os.environ)
    local = int(os.environ["LOCAL_RANK"])
    recipe = load_recipe(run / "launch" / LAUNCHED)
    on_gpu = recipe.on_gpu(Machine.here())
    timeout = datetime.timedelta(minutes=recipe.parallel.timeout_minutes)
    import torch

    from dsv3_plugin.distributed import world

    rank_file(run, node_name(), local, "began").touch()
    world.join("nccl" if on_gpu else "gloo", local, timeout, None)
    one = torch.ones(1, device="cuda" if on_gpu else "cpu")
    torch.distributed.all_reduce(one)
    ranks = torch.distributed.get_world_size()
    if (total := one.item()) != ranks:
        raise UserError(f"{ranks} ranks that add 1 up have {total:g}.")
    rank_file(run, node_name(), local, "done").touch()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    try:
        add_up(Path(sys.argv[1]))
    except UserError as error:
        note(f"dsv3: {node_name()}: {error}")
        sys.exit(2)
