"""The reference that a divergence is taken to: the model as it was, kept on the host."""

import contextlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.run_folder import RunFolder


class Reference:
    """Weights of a rank, each time that they are taken in a file of its own, from where a run that
    goes on has them again.

    Args:
        folder: of the run.
        interval: steps after which they are taken anew; None: never.
    """

    def __init__(self, folder: RunFolder, interval: int | None) -> None:
        self._folder, self._interval = folder, interval
        self._step: int | None = None
        self._weights: list[Tensor] = []

    @contextlib.contextmanager
    def in_place(self, model: Sequence[torch.nn.Module], iteration: int) -> Iterator[None]:
        """Have the reference in the place of a rank's weights while the block lasts.

        Args:
            model: the rank's chunks.
            iteration: the step that begins.

        Raises:
            UserError: the run was divided otherwise when it was taken.
        """
        weights = [tensor for chunk in model for tensor in _weights(chunk)]
        self._make_sure(weights, iteration)
        own = _exchanged(weights, self._weights)
        try:
            yield
        finally:
            _exchanged(weights, own)

    def _make_sure(self, weights: Sequence[Tensor], iteration: int) -> None:
        """Have the one that this step is compared with."""
        if self._step is None:
            self._load(weights, iteration)
        due = self._interval is not None and iteration - (self._step or 0) >= self._interval
        if self._step is None or due:
            self._weights, self._step = [_copy(tensor) for tensor in weights], iteration
            place = self._file(iteration)
            place.parent.mkdir(parents=True, exist_ok=True)
            unfinished = place.with_suffix(".unfinished")
            torch.save(self._weights, unfinished)
            unfinished.rename(place)
            self._remove_old()

    def _load(self, weights: Sequence[Tensor], iteration: int) -> None:
        steps = [step for step in self._steps() if step <= iteration]
        if not steps:
            return
        self._step = steps[-1]
        self._weights = torch.load(self._file(self._step), weights_only=True)
        if [tensor.shape for tensor in self._weights] != [tensor.shape for tensor in weights]:
            raise UserError(
                f"{self._file(self._step)} is the reference of a run that was divided otherwise: "
                f"restore parallel, or start a run in another folder with directory=PATH."
            )

    def _remove_old(self) -> None:
        """All that no checkpoint goes on with."""
        steps, saved = self._steps(), self._folder.steps_saved()
        for step, later in pairwise(steps):
            if later <= saved:
                self._file(step).unlink()

    def _steps(self) -> list[int]:
        rank = dist.get_rank()
        files = self._folder.reference.glob(f"step_*_rank_{rank}.pt")
        return sorted(int(path.name.split("_")[1]) for path in files)

    def _file(self, step: int) -> Path:
        return self._folder.reference / f"step_{step:07d}_rank_{dist.get_rank()}.pt"


def _weights(chunk: torch.nn.Module) -> Iterator[Tensor]:
    """What a chunk computes with: parameters, and the biases by which routers choose."""
    yield from chunk.parameters()
    for name, buffer in chunk.named_buffers():
        if name.endswith("expert_bias"):
            yield buffer


@torch.no_grad()
def _exchanged(weights: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    """Put others in the place of weights; a copy of these."""
    own = [_copy(tensor) for tensor in weights]
    for tensor, other in zip(weights, others, strict=True):
        tensor.copy_(other)
    return own


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
