"""Runs a function on several gloo ranks, each a process, on this machine.

The processes are forked from one server that has imported torch and megatron already (on the CPU
host), so that eight ranks cost one import. The rendezvous store is kept by the test's own process,
on a port the system chooses, and so outlives any rank, as torchrun's does.
"""

import datetime
import os
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dsv3_plugin.upstream import cpu_host
from tests.forked import forked

cpu_host.enable()

import dsv3_plugin.model.build  # noqa: E402, F401  (paid for once, in the server)


def run_ranks(
    world: int,
    function: Callable[..., Any],
    *arguments: Any,
    scratch: Path,
    timeout_s: float = 60.0,
    missing: tuple[int, ...] = (),
) -> list[Any]:
    """`function(rank, *arguments)` on ranks 0 … world−1 of a gloo world; what each returned.

    Args:
        function: at module level of a test file.
        scratch: a directory of this call alone, for the results.
        timeout_s: of the collectives.
        missing: ranks whose process is expected to die; their result is None.
    """
    forked_processes = forked()
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes, results = [], []
    for rank in range(world):
        reader, writer = forked_processes.Pipe(duplex=False)
        process = forked_processes.Process(
            target=_rank_main,
            args=(rank, world, function, arguments, scratch, timeout_s, store.port, writer),
            daemon=True,
        )
        process.start()
        writer.close()
        processes.append(process)
        results.append(reader)
    try:
        answers = [_answer(results[rank], rank in missing, timeout_s) for rank in range(world)]
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    failed = [f"rank {rank}:\n{text}" for rank, (ok, text) in enumerate(answers) if not ok]
    if failed:
        raise AssertionError("\n".join(failed))
    return [
        value if isinstance(value, type(None)) else torch.load(value, weights_only=False)
        for _, value in answers
    ]


def _answer(result: Connection, may_die: bool, timeout_s: float) -> tuple[bool, Any]:
    if not result.poll(timeout_s + 60):
        return False, "no answer"
    try:
        return result.recv()
    except EOFError:
        return may_die, None if may_die else "died"


def _rank_main(
    rank: int,
    world: int,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    scratch: Path,
    timeout_s: float,
    port: int,
    result: Connection,
) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        dist.init_process_group(
            "gloo",
            store=dist.TCPStore("127.0.0.1", port, is_master=False),
            rank=rank,
            world_size=world,
            timeout=datetime.timedelta(seconds=timeout_s),
        )
        value = function(rank, *arguments)
        path = scratch / f"result{rank}.pt"
        torch.save(value, path)
        result.send((True, path))
        dist.barrier()
    except BaseException:
        result.send((False, traceback.format_exc()))
    finally:
        os._exit(0)
