"""Runs a function on several gloo ranks, each a process that is a CPU host.

The processes are forked from a server (`tests.forked`), so that eight ranks cost one import of
torch and megatron.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsv3_plugin.upstream import cpu_host
from tests.forked import forked
from tests.ranks import run_on

cpu_host.enable()


def run_ranks(
    world: int,
    function: Callable[..., Any],
    *arguments: Any,
    scratch: Path,
    timeout_s: float = 60.0,
    missing: tuple[int, ...] = (),
) -> list[Any]:
    """`function(rank, *arguments)` on ranks 0 … world−1 of a gloo world; see `run_on`."""
    return run_on(
        *(forked(), "gloo", world, function, *arguments),
        scratch=scratch,
        timeout_s=timeout_s,
        missing=missing,
    )
