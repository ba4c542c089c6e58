"""What we change about upstream's saving: when, and how many checkpoints are kept."""

import functools
import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from megatron.training.checkpointing import get_loaded_iteration

from dsv3_plugin.training.checkpoint_folder import retire
from dsv3_plugin.training.hooks import Hook
from dsv3_plugin.training.run import current_run


class Saving(Hook):
    """Says which checkpoints are worth writing, and removes old ones once a new one is whole.

    Args:
        folder: where they lie.
        keep: how many of the newest stay; None: all.
    """

    def __init__(self, folder: Path, keep: int | None) -> None:
        self._folder = folder
        self._keep = keep
        self._saved: int | None = None

    def wants_save(self, iteration: int) -> bool:
        """Whether a checkpoint of this iteration is not there yet.

        Writing one again, in place, would put at risk what is safe.
        """
        return iteration not in (self._saved, get_loaded_iteration())

    def on_save(self, iteration: int) -> None:
        self._saved = iteration
        if self._keep is not None and torch.distributed.get_rank() == 0:
            retire(self._folder, self._keep)


def get_write_results_queue(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps upstream's `get_write_results_queue`: writers in this process need no other one.

    Upstream starts a process to hold the queue even where threads write. That costs seconds at the
    first checkpoint, and a SIGTERM to a whole job (`scancel`, preemption) ends that process, and
    with it the save that the signal asked for. A writer process gives its answer through no other
    queue, so whoever asks `dist_checkpointing` to save asynchronously gets upstream's.
    """

    @functools.wraps(original)
    def in_this_process(*args: Any, **kwargs: Any) -> Any:
        run = current_run()
        return queue.Queue() if run and run.saving_here else original(*args, **kwargs)

    return in_this_process
