"""What evaluations read: never to the end, and of several sets in turn."""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.datasets.utils import Split


class Endless(torch.utils.data.Dataset[Any]):
    """A dataset that begins anew after its last sample.

    Upstream lays out as many samples as it expects to be read. Its count knows neither of an
    evaluation before the first step together with one at the end, nor of a run that goes on with
    longer intervals and has read more already than they would; its sampler then stops in the
    middle of an evaluation, or does not start.

    Args:
        samples: what is repeated, as long as it was made: the order of upstream's datasets depends
            on their lengths.
    """

    def __init__(self, samples: Any) -> None:
        self._samples = samples
        self.split = getattr(samples, "index_split", None) or samples.split
        """Upstream's sampler takes the batch size of evaluations by it."""

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Any:
        return self._samples[index % len(self._samples)]


class InTurn(torch.utils.data.Dataset[Any]):
    """Several sets as one: an evaluation's samples of each, one set after the other, without end.

    Upstream's own `--multiple-validation-sets` reads all of each set every time.

    Args:
        sets: what is evaluated on, in its order.
        per_evaluation: samples that an evaluation reads of a set.
        consumed: samples that were read before, of all sets; the first to be read is of this
            number.
    """

    split = Split.valid

    def __init__(self, sets: Sequence[Endless], per_evaluation: int, consumed: int) -> None:
        self._sets = sets
        self._per_evaluation = per_evaluation
        self._consumed = consumed
        # A run may go on with other sets, or other evaluations, than it was stopped with.
        self._consumed_of_each = -(-consumed // len(sets))

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Any:
        evaluation, sample = divmod(index - self._consumed, self._per_evaluation)
        turn, of_set = divmod(evaluation, len(self._sets))
        return self._sets[of_set][self._consumed_of_each + turn * self._per_evaluation + sample]
