"""What micro-batches leave behind: what one keeps of a stage, and what none should.

Between a stage's forward and its backward a micro-batch holds what the backward needs; stages of
like layers hold alike. After the backward it holds nothing, however many follow.
"""

from collections import Counter
from collections.abc import Hashable
from typing import Any

from dsv3_plugin.pipeline.rank_step import RankStep
from dsv3_plugin.rehearsal.storages import ACTIVATIONS, Storages
from dsv3_plugin.schedules.actions import FORWARD, Action, Overlap
from dsv3_plugin.upstream.replace import Replacer

_UPSTREAMS = "megatron.core.pipeline_parallel.schedules"


class MicroBatches:
    """Looks at the storages of a rank as its micro-batches come and go.

    Args:
        storages: of the rank; told which computation began last.
        micro_batches: of the step.

    Attributes:
        kept: stage of the schedule → bytes of activations that one forward left, the least of all.
    """

    def __init__(self, storages: Storages, micro_batches: int) -> None:
        self._storages = storages
        self._micro_batches = micro_batches
        self._begun: Counter[Hashable] = Counter()
        self._left: Counter[Hashable] = Counter()
        self.kept: dict[int, int] = {}

    def follow(self, replacer: Replacer) -> None:
        """Look on in our executor's steps and in upstream's."""
        replacer.wrap(f"{RankStep.__module__}:RankStep._compute", self._ours)
        replacer.wrap(f"{_UPSTREAMS}:forward_step", self._upstreams_forward)
        replacer.wrap(f"{_UPSTREAMS}:backward_step", self._upstreams_backward)

    @property
    def growth(self) -> int:
        """Bytes that a micro-batch leaves behind for good.

        What every computation of a kind but the first leaves: a first one makes what is kept for
        the rest, and what the last ones sent may be on its way.
        """
        grown = 0
        for kind, times in self._begun.items():
            left = (self._left[kind, number] for number in range(2, times))
            grown += times * min(left, default=0)
        return grown // self._micro_batches

    def _begin(self, kind: Hashable) -> None:
        self._begun[kind] += 1
        self._storages.era = (kind, self._begun[kind])

    def _end(self) -> None:
        self._left = Counter(self._storages.by_era)

    def _ours(self, original: Any) -> Any:
        def compute(step: RankStep, action: Action) -> None:
            self._begin(tuple((part.kind, part.stage) for part in action.parts))
            before = self._storages.now[ACTIVATIONS]
            original(step, action)
            if isinstance(action, Overlap) or action.kind != FORWARD:
                self._end()
                return
            kept = self._storages.now[ACTIVATIONS] - before
            self.kept[action.stage] = min(kept, self.kept.get(action.stage, kept))

        return compute

    def _upstreams_forward(self, original: Any) -> Any:
        def forward_step(*args: Any, **kwargs: Any) -> Any:
            self._begin(("F", id(args[2])))  # the chunk
            return original(*args, **kwargs)

        return forward_step

    def _upstreams_backward(self, original: Any) -> Any:
        def backward_step(*args: Any, **kwargs: Any) -> Any:
            self._begin("B")
            gradient = original(*args, **kwargs)
            self._end()
            return gradient

        return backward_step
