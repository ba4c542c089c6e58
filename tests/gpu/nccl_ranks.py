"""Runs a function on several GPUs over NCCL, each rank a process of its own.

They are spawned: a process with a CUDA context cannot be forked.
"""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.ranks import run_on


def run_ranks(
    world: int,
    function: Callable[..., Any],
    *arguments: Any,
    scratch: Path,
    timeout_s: float = 300.0,
) -> list[Any]:
    """`function(rank, *arguments)` on GPUs 0 … world−1; see `run_on`."""
    processes = multiprocessing.get_context("spawn")
    return run_on(
        processes, "nccl", world, function, *arguments, scratch=scratch, timeout_s=timeout_s
    )
