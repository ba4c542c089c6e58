"""What a rank of a real run holds in memory, on gloo and CPU tensors.

The run is the product's, from a recipe, trained for one step. Hooks look at the model, at the
optimizer, and at what the step keeps alive. Tokens are routed evenly: how many rows an untrained
router sends to a rank is chance, and not what is measured.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsv3_plugin.stages.pretrain import pretrain
from dsv3_plugin.training.hooks import Hook, Step
from dsv3_plugin.training.run import Run
from dsv3_plugin.training.stage import Stage
from tests.live_memory import LiveStorages
from tests.training import trainer_ranks

ONE_STEP = ["training.steps=1", "training.eval_interval=null"]


def measured(rank: int, recipe: Path, overrides: Sequence[str]) -> dict[str, int]:
    """For `gloo_ranks.run_ranks`: bytes of this rank by part, in the only step of a run.

    Returns:
        weights, gradients, optimizer: what the planner calls so. kept: the most between two
        computations of the schedule, without messages between stages. most: the most at all.
    """
    found: dict[str, int] = {}
    trainer_ranks.train(rank, recipe, [*overrides, *ONE_STEP], partial(_stage, found))
    return found


def _stage(found: dict[str, int], run: Run) -> Stage:
    return dataclasses.replace(pretrain(run), hooks=[_Activations(found), _States(found)])


class _States(Hook):
    """Bytes of weights, gradients and optimizer states, as far as storages hold them."""

    def __init__(self, found: dict[str, int]) -> None:
        self._found = found

    def after_step(self, step: Step) -> None:
        adams = [optimizer.optimizer for optimizer in step.optimizer.chained_optimizers]
        states = [
            tensor
            for adam in adams
            for tensor in (
                *(value for state in adam.state.values() for value in state.values()),
                *(parameter for group in adam.param_groups for parameter in group["params"]),
            )
        ]
        weights = _storages(_weights(step))
        self._found["weights"] = sum(weights.values())
        self._found["gradients"] = sum(_storages(_gradients(step)).values())
        self._found["optimizer"] = sum(
            size for where, size in _storages(states).items() if where not in weights
        )

    def wants_save(self, iteration: int) -> bool:
        return False


class _Activations(Hook):
    """Bytes of what the step makes, looked at after every computation of the schedule."""

    def __init__(self, found: dict[str, int]) -> None:
        self._found = found

    def before_step(self, step: Step) -> None:
        self._live = LiveStorages([*_weights(step), *_gradients(step)])
        self._found["kept"] = 0
        _watch_overlapped_pairs(self._live)
        _route_evenly()
        _watch_our_executor(self._live, self._look)
        _watch_upstreams_executor(self._live, self._look)
        self._watch = self._live.watching()
        self._watch.__enter__()

    def after_backward(self, step: Step) -> None:
        self._watch.__exit__(None, None, None)
        self._found["most"] = self._live.most

    def _look(self, waiting: Sequence[Tensor] = ()) -> None:
        self._found["kept"] = max(self._found["kept"], self._live.kept(waiting))


def _watch_our_executor(live: LiveStorages, look: Callable[..., None]) -> None:
    """Look after each action."""
    from dsv3_plugin.pipeline.p2p import StageMessages
    from dsv3_plugin.pipeline.rank_step import RankStep

    compute, post = RankStep._compute, StageMessages.post

    def posted(self: Any, messages: Any) -> None:
        post(self, messages)
        for _, tensor, _ in self._sending:
            live.leaves(tensor)

    def computed(self: Any, action: Any) -> None:
        compute(self, action)
        waiting = self._messages._expected.values()
        look([*self._messages._outgoing.values(), *(tensor for _, tensor in waiting)])

    StageMessages.post, RankStep._compute = posted, computed


def _watch_upstreams_executor(live: LiveStorages, look: Callable[..., None]) -> None:
    """Look after each forward, as then there is most; outputs and gradients are messages."""
    from megatron.core.pipeline_parallel import schedules

    forward, backward = schedules.forward_step, schedules.backward_step

    def leaves(tensors: Any) -> None:
        for tensor in tensors if isinstance(tensors, list) else [tensors]:
            live.leaves(tensor)

    def forward_step(*args: Any, **kwargs: Any) -> Any:
        output, tokens = forward(*args, **kwargs)
        leaves(output)
        look()
        return output, tokens

    def backward_step(inputs: Any, outputs: Any, gradients: Any, *args: Any) -> Any:
        leaves(gradients)
        result = backward(inputs, outputs, gradients, *args)
        leaves(result)
        return result

    schedules.forward_step, schedules.backward_step = forward_step, backward_step


def _watch_overlapped_pairs(live: LiveStorages) -> None:
    """Whose backward runs on a thread of its own."""
    from dsv3_plugin.distributed import overlap

    settings = overlap._thread_settings
    overlap._thread_settings = lambda: [*settings(), live.watching()]


def _route_evenly() -> None:
    """Send token t to the experts from k · t on, so that every expert has as many rows."""
    from dsv3_plugin.model.router import DeepSeekRouter

    def choose(self: Any, scores: Tensor) -> Tensor:
        tokens, experts = scores.shape
        first = torch.arange(tokens)[:, None] * self.topk
        return (first + torch.arange(self.topk)) % experts

    DeepSeekRouter._choose = choose


def _weights(step: Step) -> list[Tensor]:
    chunks = [chunk.module for chunk in step.model]
    return [t for chunk in chunks for t in (*chunk.parameters(), *chunk.buffers())]


def _gradients(step: Step) -> list[Tensor]:
    return [
        buffer.grad_data
        for chunk in step.model
        for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers)
    ]


def _storages(tensors: Iterable[object]) -> dict[int, int]:
    """Bytes of what lies behind tensors, by where it lies: views of one count once."""
    storages = [t.untyped_storage() for t in tensors if isinstance(t, Tensor)]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}
