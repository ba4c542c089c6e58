"""What runs beside a step: the seam between upstream's trainer and everything of ours.

A run carries a list of hooks. Upstream's functions are wrapped once, for the list
(`around_upstream`), and each moment of a step is offered to the hooks in the order in which they
are listed: curves, throughput, the load of experts, saving, metrics. `docs/adding-a-hook.md` adds
one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Step:
    """One optimizer step, as hooks see it.

    Attributes:
        iteration: its number; the first step of a run is 1.
        tokens: consumed before it; what every curve is a function of.
        batch_size: sequences of it, over all ranks.
        micro_batches: of it, on each data-parallel rank; a hook may say otherwise before the step,
            whose batch is then as large as it is, and counts as large as it was to be.
        model: this rank's chunks, in upstream's wrappers.
        optimizer: upstream's.
        config: upstream's configuration of the model, read at the moment of use.
        numbers: what is known of the step by name; the metrics write them into its line.
    """

    iteration: int
    tokens: int
    batch_size: int
    micro_batches: int
    model: Sequence[torch.nn.Module]
    optimizer: Any
    config: Any
    numbers: dict[str, Any] = field(default_factory=dict)


class Hook:
    """A subclass writes the methods it needs; each is called on every rank.

    A hook keeps its own state. What of it a resumed run needs goes through `state_dict`, into the
    checkpoint: plain values that are equal on all ranks, or upstream's ShardedTensor.
    """

    @property
    def name(self) -> str:
        """What its state is called in a checkpoint; one hook of a run has it."""
        return type(self).__name__

    def before_step(self, step: Step) -> None:
        """Before gradients are zeroed: what the step computes with can be set now."""

    def after_backward(self, step: Step) -> None:
        """Gradients are reduced over all ranks and scaled; the optimizer has not moved yet."""

    def after_step(self, step: Step) -> None:
        """The optimizer has moved, or has skipped a step whose gradients are not finite."""

    def on_log(self, step: Step) -> None:
        """Upstream has logged the step."""

    def on_evaluation(self, iteration: int) -> None:
        """Upstream has evaluated the weights after `iteration` steps."""

    def on_held_out_set(self, iteration: int, name: str) -> None:
        """Upstream has evaluated them on one of the held-out sets, which come after that."""

    def wants_save(self, iteration: int) -> bool:
        """Whether a checkpoint that upstream is about to write is one to write."""
        return True

    def on_save(self, iteration: int) -> None:
        """The checkpoint of `iteration` is whole, which may be some steps after it was begun."""

    def on_load(self, iteration: int) -> None:
        """The run goes on from the checkpoint of `iteration`; `load_state_dict` came before."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it; nothing where it is empty."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave when the checkpoint was written."""
