"""The world of ranks: joining the run's, or making one of a single process.

A rank learns from its launcher's environment where it stands (`RANK`, `WORLD_SIZE`, `LOCAL_RANK`,
`MASTER_ADDR`, `MASTER_PORT`). For work that needs a model and no trainer there is
`single_process`: upstream's modules take their process groups from `parallel_state`, so even one
process computing logits has to have a world.
"""

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from dsv3_plugin.errors import UserError
from dsv3_plugin.upstream import cpu_host

Backend = Literal["nccl", "gloo"]
"""Of torch.distributed: what GPUs talk over, what CPUs do."""


def order_kernels(tensor: int, context: int) -> None:
    """Let kernels start in the order in which they are launched, where communication overlaps.

    With tensor or context parallelism upstream refuses to start without this; CUDA reads it once,
    when it starts. A value that is there already is kept.

    Args:
        tensor, context: degrees of parallelism.
    """
    if tensor > 1 or context > 1:
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")


def join(
    backend: Backend,
    local_rank: int,
    timeout: datetime.timedelta,
    store: torch.distributed.Store | None = None,
) -> None:
    """Choose the device of this process, and join the process group of the run.

    Args:
        backend: `nccl` takes the GPU of this local rank; `gloo` makes the process a CPU host.
        local_rank: this process's number among those on this machine.
        timeout: of collectives.
        store: where the ranks meet; None: where the launcher's environment says.

    Raises:
        UserError: there is no GPU for this rank.
    """
    if backend == "nccl":
        _take_gpu(local_rank)
    else:
        cpu_host.enable()
        _share_processors()
    torch.distributed.init_process_group(
        backend,
        store=store,
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=timeout,
    )


def store_on_socket(timeout: datetime.timedelta, listener: int | None) -> torch.distributed.Store:
    """The store at `MASTER_ADDR` and `MASTER_PORT`, kept by rank 0.

    Args:
        timeout: how long a rank waits for the others.
        listener: descriptor of the socket that is bound to the port already; rank 0 has it.
    """
    return torch.distributed.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        int(os.environ["WORLD_SIZE"]),
        is_master=listener is not None,
        timeout=timeout,
        master_listen_fd=listener,
    )


@contextmanager
def single_process(seed: int = 0) -> Iterator[None]:
    """A world of this process alone, without ports or environment variables, and its end.

    Uses the GPU where there is one, and turns the process into a CPU host where there is none.

    Args:
        seed: of Megatron's random number tracker, which initialises weights.

    Raises:
        RuntimeError: torch.distributed is already initialised in this process.
    """
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        cpu_host.enable()
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    if torch.distributed.is_initialized():
        raise RuntimeError("this process already belongs to a distributed world")
    torch.distributed.init_process_group(
        "nccl" if on_gpu else "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        parallel_state.initialize_model_parallel()
        model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
        yield
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


def _take_gpu(local_rank: int) -> None:
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"rank {os.environ['RANK']} has no GPU: torch sees {torch.cuda.device_count()} on this "
            f"machine. Start as many ranks on it as it has GPUs; what runs without a GPU is small, "
            f"such as the recipe pretrain/tiny."
        )
    torch.cuda.set_device(local_rank)


def _share_processors() -> None:
    """Divide the processors among the ranks of this machine, unless OMP_NUM_THREADS says how."""
    if "OMP_NUM_THREADS" not in os.environ:
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks_here))
