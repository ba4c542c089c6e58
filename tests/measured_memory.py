"""What a rank of a real run holds in memory, on gloo and CPU tensors.

The run is the product's, from a recipe; a hook looks at the model and the optimizer after a step.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import torch

from dsv3_plugin.stages.pretrain import pretrain
from dsv3_plugin.training.hooks import Hook, Step
from dsv3_plugin.training.run import Run
from dsv3_plugin.training.stage import Stage
from tests.training import trainer_ranks

ONE_STEP = ["training.steps=1", "training.eval_interval=null"]


def measured(rank: int, recipe: Path, overrides: Sequence[str]) -> dict[str, int]:
    """For `gloo_ranks.run_ranks`: bytes of this rank by part, in the only step of a run."""
    found: dict[str, int] = {}
    trainer_ranks.train(rank, recipe, [*overrides, *ONE_STEP], partial(_stage, found))
    return found


def _stage(found: dict[str, int], run: Run) -> Stage:
    return dataclasses.replace(pretrain(run), hooks=[_States(found)])


class _States(Hook):
    """Bytes of weights, gradients and optimizer states, as far as storages hold them."""

    def __init__(self, found: dict[str, int]) -> None:
        self._found = found

    def after_step(self, step: Step) -> None:
        weights = [
            tensor
            for chunk in step.model
            for tensor in (*chunk.module.parameters(), *chunk.module.buffers())
        ]
        gradients = [
            buffer.grad_data
            for chunk in step.model
            for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers)
        ]
        states = [
            tensor
            for optimizer in step.optimizer.chained_optimizers
            for adam in [optimizer.optimizer]
            for tensor in (
                *(value for state in adam.state.values() for value in state.values()),
                *(parameter for group in adam.param_groups for parameter in group["params"]),
            )
        ]
        held = _storages(weights)
        self._found["weights"] = sum(held.values())
        self._found["gradients"] = sum(_storages(gradients).values())
        self._found["optimizer"] = sum(
            size for where, size in _storages(states).items() if where not in held
        )

    def wants_save(self, iteration: int) -> bool:
        return False


def _storages(tensors: Iterable[object]) -> dict[int, int]:
    """Bytes of what lies behind tensors, by where it lies: views of one count once."""
    storages = [t.untyped_storage() for t in tensors if isinstance(t, torch.Tensor)]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}
