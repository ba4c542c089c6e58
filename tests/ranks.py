"""Runs a function on several ranks, each a process of its own on this machine.

The rendezvous store is kept by the test's own process, on a port the system chooses, and so
outlives any rank, as torchrun's does. `gloo_ranks` runs CPU hosts, `gpu/nccl_ranks` runs GPUs.
"""

import datetime
import os
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

Backend = Literal["gloo", "nccl"]


def run_on(
    processes: BaseContext,
    backend: Backend,
    world: int,
    function: Callable[..., Any],
    *arguments: Any,
    scratch: Path,
    timeout_s: float = 60.0,
    missing: tuple[int, ...] = (),
) -> list[Any]:
    """`function(rank, *arguments)` on ranks 0 … world−1; what each returned, on the CPU.

    Args:
        processes: what makes them.
        backend: gloo, or nccl with rank r on GPU r.
        function: at module level of a test file.
        scratch: a directory of this call alone, for the results.
        timeout_s: of the collectives.
        missing: ranks whose process is expected to die; their result is None.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks, results = [], []
    for rank in range(world):
        reader, writer = processes.Pipe(duplex=False)
        call = (function, arguments, scratch, timeout_s)
        process = processes.Process(
            target=_rank_main, args=(backend, rank, world, *call, store.port, writer), daemon=True
        )
        process.start()
        writer.close()
        ranks.append(process)
        results.append(reader)
    try:
        answers = [_answer(results[rank], rank in missing, timeout_s) for rank in range(world)]
    finally:
        # Every rank has answered, or has no time left: none is waited for by another any more.
        for process in ranks:
            process.kill()
        for process in ranks:
            process.join()
    failed = [f"rank {rank}:\n{text}" for rank, (ok, text) in enumerate(answers) if not ok]
    if failed:
        raise AssertionError("\n".join(failed))
    return [
        None if path is None else torch.load(path, weights_only=False, map_location="cpu")
        for _, path in answers
    ]


def _answer(result: Connection, may_die: bool, timeout_s: float) -> tuple[bool, Any]:
    if not result.poll(timeout_s + 60):
        return False, "no answer"
    try:
        return result.recv()
    except EOFError:
        return may_die, None if may_die else "died"


def _rank_main(
    backend: Backend,
    rank: int,
    world: int,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    scratch: Path,
    timeout_s: float,
    port: int,
    result: Connection,
) -> None:
    warnings.simplefilter("ignore")
    if backend == "nccl":
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(1)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        dist.init_process_group(
            backend,
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
