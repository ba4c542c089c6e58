"""A Megatron world of one process, for work that needs a model and no trainer.

Upstream's modules take their process groups from `parallel_state`, so even one process computing
logits has to have a world. `single_process` makes one without ports or environment variables and
takes it down again.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dsv3_plugin.upstream import cpu_host


@contextmanager
def single_process(seed: int = 0) -> Iterator[None]:
    """Initialise torch.distributed and Megatron's parallel state for this process alone.

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
