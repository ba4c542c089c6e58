"""What we change about upstream's saving: when, what a full disk means, and how many are kept."""

import functools
import queue
from collections.abc import Callable
from typing import Any

import torch
from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.training import get_args
from megatron.training.checkpointing import get_loaded_iteration

from dsv3_plugin.errors import UserError
from dsv3_plugin.files import full_disk as disk
from dsv3_plugin.training import run as runs
from dsv3_plugin.training import step
from dsv3_plugin.training.checkpoint_folder import retire

_saved: int | None = None
"""The iteration saved last by this process."""


def save_whole(save_checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps upstream's `save_checkpoint`: old checkpoints go once the new one is whole."""

    def saved(iteration: int, *args: Any, **kwargs: Any) -> Any:
        global _saved
        run = runs.active()
        if run is None:
            return save_checkpoint(iteration, *args, **kwargs)
        if not _worth_saving(iteration):
            return None
        try:
            answer = save_checkpoint(iteration, *args, **kwargs)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # torch's CheckpointException is no Exception
            if disk.is_full(error, run.recipe.checkpoint_folder):
                raise UserError(
                    f"no space left for the checkpoint of step {iteration} in "
                    f"{run.recipe.checkpoint_folder}: make room and start again; the run goes on "
                    f"from the checkpoint before."
                ) from error
            raise
        _saved = iteration
        if torch.distributed.get_rank() == 0 and run.recipe.checkpoint.keep is not None:
            retire(run.recipe.checkpoint_folder, run.recipe.checkpoint.keep)
        return answer

    return saved


def _worth_saving(iteration: int) -> bool:
    """Whether a checkpoint of this iteration is not there yet, and was asked for.

    Writing one again, in place, would put at risk what is safe. And upstream saves each time the
    batch has grown, a hundred times in DeepSeek-V3's ramp: its number of micro-batches is already
    the next step's then.
    """
    if iteration in (_saved, get_loaded_iteration()):
        return False
    return step.micro_batches in (None, get_num_microbatches())


def results_queue(get_write_results_queue: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps upstream's `get_write_results_queue`: writers in this process need no other one.

    Upstream starts a process to hold the queue even where threads write. That costs seconds at the
    first checkpoint, and a SIGTERM to a whole job (`scancel`, preemption) ends that process, and
    with it the save that the signal asked for.
    """

    @functools.wraps(get_write_results_queue)
    def get(*args: Any, **kwargs: Any) -> Any:
        if get_args().async_save:
            return get_write_results_queue(*args, **kwargs)
        return queue.Queue()

    return get
