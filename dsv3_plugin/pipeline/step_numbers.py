"""What the ranks of a pipeline tell each other when a step is over: one tensor, one all_reduce.

Upstream reads losses and MTP's losses on the last rank of the pipeline, and takes the token count
from there; here they arise wherever the schedule puts the last stage. Every rank writes what it has
into a vector that is zero elsewhere, and the sum is everyone's. In FP64, which holds FP32 numbers
and token counts as they are, so what arrives is what was sent, to the bit.

What the numbers are called, and their shapes, only the ranks know that have them: that is told
once, before the first step's numbers (`agree`).
"""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper

Numbers = Mapping[str, torch.Tensor]
Described = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and type of numbers by their name."""


@dataclass(frozen=True)
class Form:
    """What stands where in the vector.

    Attributes:
        report: what the loss function reports of one micro-batch.
        totals: what is summed over ranks and micro-batches.
    """

    report: Described
    totals: Described

    def pack(
        self,
        micro_batches: int,
        reports: Mapping[int, Numbers],
        totals: Numbers,
        device: torch.device | int,
    ) -> torch.Tensor:
        """This rank's vector, zero where it has nothing.

        Raises:
            RuntimeError: numbers that were not there in the first step.
        """
        for described, numbers in [
            (self.totals, totals),
            *((self.report, r) for r in reports.values()),
        ]:
            if not describe(numbers).items() <= described.items():
                raise RuntimeError(
                    f"the loss function reports {describe(numbers)}, and in the first step it "
                    f"reported {described}: all steps and micro-batches must report the same"
                )
        places = self._places(micro_batches)
        vector = torch.zeros(
            sum(prod(shape) for _, _, shape, _ in places), dtype=torch.float64, device=device
        )
        begin = 0
        for micro_batch, name, shape, _ in places:
            numbers = totals if micro_batch is None else reports.get(micro_batch, {})
            if name in numbers:
                vector[begin : begin + prod(shape)] = numbers[name].detach().flatten()
            begin += prod(shape)
        return vector

    def unpack(
        self, micro_batches: int, vector: torch.Tensor
    ) -> tuple[list[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
        """The reports of all micro-batches in order, and the totals."""
        reports: list[dict[str, torch.Tensor]] = [{} for _ in range(micro_batches)]
        totals: dict[str, torch.Tensor] = {}
        begin = 0
        for micro_batch, name, shape, dtype in self._places(micro_batches):
            # Of its own memory: upstream adds to some of them.
            value = vector[begin : begin + prod(shape)].view(shape).to(dtype, copy=True)
            (totals if micro_batch is None else reports[micro_batch])[name] = value
            begin += prod(shape)
        return reports, totals

    def _places(
        self, micro_batches: int
    ) -> list[tuple[int | None, str, tuple[int, ...], torch.dtype]]:
        """(micro-batch, or None for totals; name; shape; type) of what follows each other."""
        return [
            (micro_batch, name, *described)
            for micro_batch in (*range(micro_batches), None)
            for name, described in (self.totals if micro_batch is None else self.report).items()
        ]


def describe(numbers: Numbers) -> Described:
    """Shape and type of numbers by their name."""
    return {name: (tuple(value.shape), value.dtype) for name, value in numbers.items()}


def form_of(everyone: Iterable[tuple[Described, Described]]) -> Form:
    """The form that has room for what every rank has, in the order in which it comes."""
    reports, totals = zip(*everyone, strict=True)
    return Form(
        *(dict(itertools.chain.from_iterable(d.items() for d in has)) for has in (reports, totals))
    )


def agree(reports: Mapping[int, Numbers], totals: Numbers, group: Any) -> Form:
    """The form for what the ranks of `group` have; they tell each other names, no tensors."""
    mine = describe(next(iter(reports.values()), {})), describe(totals)
    everyone: list[Any] = [None] * group.size()
    torch.distributed.all_gather_object(everyone, mine, group=group, weights_only=True)
    return form_of(everyone)


def mtp_losses() -> dict[str, torch.Tensor]:
    """The MTP losses that arose on this rank. Upstream logs them on the last."""
    return {
        name: value
        for name, value in MTPLossLoggingHelper.tracker.items()
        if isinstance(value, torch.Tensor) and "cumulative" not in name
    }


def keep_mtp_losses(losses: Numbers) -> None:
    """Put the pipeline's MTP losses where upstream looks for them, on every rank."""
    if not losses:
        return
    tracker = MTPLossLoggingHelper.tracker
    tracker.update(losses)
    tracker.setdefault("reduce_group", None)
    tracker["avg_group"] = parallel_state.get_data_parallel_group(with_context_parallel=True)
