"""Which checkpoints are written, and how many are kept."""

from pathlib import Path

import torch

from dsv3_plugin.training.checkpoint_folder import retire
from dsv3_plugin.training.hooks import Hook


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

        Writing one again, in place, would put at risk what is safe. What upstream has loaded
        (`get_loaded_iteration`) may be a parent's, of the same number in another folder.
        """
        return iteration != self._saved

    def on_load(self, iteration: int) -> None:
        self._saved = iteration

    def on_save(self, iteration: int) -> None:
        self._saved = iteration
        if self._keep is not None and torch.distributed.get_rank() == 0:
            retire(self._folder, self._keep, iteration)
