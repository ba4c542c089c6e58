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
from torch.distributed import distributed_c10d

from dsv3_plugin.errors import Passing, UserError
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.upstream import cpu_host

Backend = Literal["nccl", "gloo"]
"""Of torch.distributed: what GPUs talk over, what CPUs do."""


def order_kernels(recipe: Recipe) -> None:
    """Choose the number of queues that streams have to the device; CUDA reads it when it starts.

    With one, kernels start in the order in which they are launched: with tensor or context
    parallelism upstream refuses to start without that. Our executor has streams for chunks, for
    each neighbour and for each group of experts, more than the 8 queues there are otherwise; where
    two share one, the second waits for the first. So it gets all 32, as upstream advises for its
    own overlapped schedule. A value that is there already is kept.

    Args:
        recipe: the run, whose parallelism and executor decide.
    """
    parallel = recipe.parallel
    divided = parallel.tensor > 1 or parallel.context > 1
    own_pipeline = parallel.pipeline > 1 and recipe.executor == "ours"
    queues = "1" if divided else "32" if own_pipeline else None
    if queues is not None:
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", queues)


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
        UserError: there is no GPU for this rank, or the ranks did not meet.
    """
    if backend == "nccl":
        torch.cuda.set_device(gpu_for(local_rank))
    else:
        cpu_host.enable()
        _share_processors()
    with _not_met_as_sentence(timeout):
        torch.distributed.init_process_group(
            backend,
            store=store,
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            timeout=timeout,
        )
    if backend == "nccl":
        claim_gpu(distributed_c10d._get_default_store())


@contextmanager
def _not_met_as_sentence(timeout: datetime.timedelta) -> Iterator[None]:
    """What torch says where ranks do not find each other becomes a sentence."""
    rank, world_size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    port = os.environ.get("MASTER_PORT")
    where = f"MASTER_ADDR {os.environ.get('MASTER_ADDR')}, MASTER_PORT {port}"
    try:
        yield
    except (torch.distributed.DistNetworkError, torch.distributed.DistStoreError) as error:
        if "EADDRINUSE" in str(error):
            raise Passing(
                f"port {port} of this machine, where the ranks are to meet, is taken: end what "
                f"holds it, or choose another for all ranks (torchrun --master-port, or "
                f"MASTER_PORT)."
            ) from error
        raise Passing(
            f"rank {rank} did not meet all {world_size} ranks within "
            f"{timeout.total_seconds() / 60:g} minutes ({where}): look whether all were started, "
            f"and whether they reach rank 0's machine under that name and port."
        ) from error


def store_in_file(descriptor: int, timeout: datetime.timedelta) -> torch.distributed.Store:
    """The store in an open file that the ranks of this machine inherited.

    Args:
        descriptor: of the file; nobody can open it but this user's processes.
        timeout: how long a rank waits for the others.
    """
    store = torch.distributed.FileStore(f"/proc/self/fd/{descriptor}")
    store.set_timeout(timeout)
    return store


def store_of_one() -> torch.distributed.Store:
    """The store of a world of one process, which meets nobody and needs no port."""
    return torch.distributed.HashStore()


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
        "nccl" if on_gpu else "gloo", store=store_of_one(), rank=0, world_size=1
    )
    try:
        parallel_state.initialize_model_parallel()
        model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
        yield
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


def gpu_for(local_rank: int) -> int:
    """The number, among those this process sees, of the GPU that is a rank's own.

    A launcher may show each process all GPUs of the machine, or its own alone, as `srun
    --gpus-per-task=1` does: that one is number 0 to every rank.

    Raises:
        UserError: there is none.
    """
    visible = torch.cuda.device_count()
    if visible == 1:
        return 0  # whether another rank has the same one, `claim_gpu` finds out
    if local_rank >= visible:
        raise _no_gpu()
    return local_rank


def claim_gpu(store: torch.distributed.Store) -> None:
    """Make sure that no other rank of the world computes on this process's GPU.

    Raises:
        UserError: one does: there are more ranks on the machine than GPUs.
    """
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
    if store.add(f"dsv3_plugin/gpu/{gpu}", 1) > 1:
        raise _no_gpu()


def _no_gpu() -> UserError:
    return UserError(
        f"rank {os.environ['RANK']} has no GPU: torch sees {torch.cuda.device_count()} on this "
        f"machine. Start as many ranks on it as it has GPUs; what runs without a GPU is small, "
        f"such as the recipe pretrain/tiny."
    )


def _share_processors() -> None:
    """Divide the processors among the ranks of this machine, unless OMP_NUM_THREADS says how."""
    if "OMP_NUM_THREADS" not in os.environ:
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks_here))
