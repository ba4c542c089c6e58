"""What makes one stage of a model's life differ from another: batches, loss, hooks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from dsv3_plugin.data.batch import InputsOfStage
from dsv3_plugin.data.datasets import Provider
from dsv3_plugin.training.hooks import Hook

ForwardStep = Callable[[Iterator[Any] | None, torch.nn.Module], tuple[torch.Tensor, Any]]


@dataclass(frozen=True)
class Stage:
    """A stage as the trainer runs it, made for one run. `docs/adding-a-stage.md` adds one.

    Attributes:
        prepare: puts data and folders in order, on one rank, before the world trains, and tells
            what a person should know by the function it is given. It raises UserError for
            whatever a person can mend, before anything is written.
        datasets: upstream's provider of datasets, for what each pipeline stage reads of a batch.
        forward_step: one forward of a model chunk and its loss, in the form that upstream's
            schedules call.
        hooks: what runs beside a step, in its order.
        packs: whether the sequences of a micro-batch are one row of samples.
        beside: what lives for as long as training does.
        freeze: takes a rank's model chunks before they are wrapped for training, and has parts of
            them stay as they are.
        needs: takes the number of a rank, and gives what looks whether its machine has what the
            rank works with, and raises UserError; None where it needs nothing. One rank of a
            machine looks, before `prepare`.
    """

    prepare: Callable[[Callable[[str], None]], None]
    datasets: Callable[[InputsOfStage], Provider]
    forward_step: ForwardStep
    hooks: Sequence[Hook]
    packs: bool = False
    beside: AbstractContextManager[object] = field(default_factory=nullcontext)
    freeze: Callable[[Sequence[torch.nn.Module]], Sequence[torch.nn.Module]] | None = None
    needs: Callable[[int], Callable[[], None] | None] | None = None
