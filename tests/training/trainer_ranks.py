"""Ranks of a run without `dsv3 train` around them: forked, so that they cost no imports."""

import os
import sys
from pathlib import Path
from typing import Any

from dsv3_plugin.distributed.messages import Outbox
from dsv3_plugin.distributed.world import order_kernels
from dsv3_plugin.launch.rank import train_as_rank
from dsv3_plugin.machine import Machine
from dsv3_plugin.planner.resolve import load_resolved


def train(rank: int, recipe: Path, overrides: list[str], make_stage: Any = None) -> None:
    """For `gloo_ranks.run_ranks`: be this rank of the recipe's run, in its stage or another."""
    # These processes are daemons, which may have no children: no workers that read ahead.
    machine = Machine.here()
    loaded = load_resolved(recipe, [*overrides, "megatron_args.num-workers=0"], machine)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(loaded.parallel.processes),
    }
    order_kernels(loaded)  # as whoever starts ranks does
    log = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log, stream.fileno())
    try:
        train_as_rank(loaded, loaded.run_folder, machine, Outbox(), make_stage)
    except SystemExit as end:  # how upstream stops before the end
        if end.code not in (None, 0):
            raise RuntimeError(f"exit code {end.code}") from end
