"""What micro-batches leave behind: what one keeps of a stage, and what none should.

Between a stage's forward and its backward a micro-batch holds what the backward needs; stages of
like layers hold alike. After the backward it holds nothing, however many follow.
"""

from collections import Counter
from collections.abc import Hashable
from typing import Any

from dsv3_plugin.pipeline.rank_step import RankStep
from dsv3_plugin.rehearsal.storages import ACTIVATIONS, Storages
from dsv3_plugin.schedules.actions import BACKWARD, FORWARD, WEIGHT, Action
from dsv3_plugin.upstream.replace import Replacer

_UPSTREAMS = "megatron.core.pipeline_parallel.schedules"
_BLOCK = "megatron.core.transformer.transformer_block:TransformerBlock"


class MicroBatches:
    """Looks at the storages of a rank as its micro-batches come and go.

    Args:
        storages: of the rank; told which computation began last.
        micro_batches: of the step.

    Attributes:
        kept: stage of the schedule → bytes of activations that one forward left, the least of all.
            The final norm's are not among them: with multi-token prediction upstream puts it behind
            the last decoder layer (`TransformerBlock.has_final_layernorm_in_this_stage`), where
            layers have to keep what like layers do.
    """

    def __init__(self, storages: Storages, micro_batches: int) -> None:
        self._storages = storages
        self._micro_batches = micro_batches
        self._begun: Counter[Hashable] = Counter()
        self._left: Counter[Hashable] = Counter()
        self._on_their_way = self._most_on_their_way = 0
        self._of_norm = 0
        self.kept: dict[int, int] = {}

    def follow(self, replacer: Replacer) -> None:
        """Look on in our executor's steps and in upstream's."""
        replacer.wrap(f"{RankStep.__module__}:RankStep._compute", self._ours)
        replacer.wrap(f"{_BLOCK}.__init__", self._with_norm)
        replacer.wrap(f"{_UPSTREAMS}:forward_step", self._upstreams_forward)
        replacer.wrap(f"{_UPSTREAMS}:backward_step", self._upstreams_backward)

    @property
    def growth(self) -> int:
        """Bytes that a micro-batch leaves behind for good.

        What every computation of a kind but the first leaves: a first one makes what is kept for
        the rest, and what the last ones sent may be on its way. What arrives after a computation is
        for a later one, by as many as there are micro-batches on their way.
        """
        grown = 0
        for kind, times in self._begun.items():
            computed = range(2, times)
            arrived = range(2, times - self._most_on_their_way)
            for numbers, behind in ((computed, False), (arrived, True)):
                left = (self._left[kind, number, behind] for number in numbers)
                grown += times * min(left, default=0)
        return grown // self._micro_batches

    def _begin(self, kind: Hashable) -> None:
        self._begun[kind] += 1
        self._of_norm = 0
        self._storages.era = (kind, self._begun[kind], False)

    def _end(self, *, begun: bool, over: bool) -> None:
        """A computation has ended, with which a micro-batch is on its way here, or it is over."""
        self._on_their_way += begun - over
        self._most_on_their_way = max(self._most_on_their_way, self._on_their_way)
        if over:
            self._left = Counter(self._storages.by_era)
        kind, number, _ = self._storages.era
        self._storages.era = (kind, number, True)

    def _with_norm(self, original: Any) -> Any:
        def count(times: int) -> Any:
            def hook(*_: Any) -> None:
                self._of_norm += times * self._storages.now[ACTIVATIONS]

            return hook

        def made(block: Any, *args: Any, **kwargs: Any) -> None:
            original(block, *args, **kwargs)
            if block.final_layernorm is not None:
                block.final_layernorm.register_forward_pre_hook(count(-1))
                block.final_layernorm.register_forward_hook(count(1))

        return made

    def _ours(self, original: Any) -> Any:
        def compute(step: RankStep, action: Action) -> None:
            self._begin(tuple((part.kind, part.stage) for part in action.parts))
            before = self._storages.now[ACTIVATIONS]
            original(step, action)
            kinds = {part.kind for part in action.parts}
            self._end(begun=FORWARD in kinds, over=bool(kinds & {BACKWARD, WEIGHT}))
            if kinds == {FORWARD}:
                kept = self._storages.now[ACTIVATIONS] - before - self._of_norm
                self.kept[action.stage] = min(kept, self.kept.get(action.stage, kept))

        return compute

    def _upstreams_forward(self, original: Any) -> Any:
        def forward_step(*args: Any, **kwargs: Any) -> Any:
            self._begin(("F", id(args[2])))  # the chunk
            output = original(*args, **kwargs)
            self._end(begun=True, over=False)
            return output

        return forward_step

    def _upstreams_backward(self, original: Any) -> Any:
        def backward_step(*args: Any, **kwargs: Any) -> Any:
            self._begin("B")
            gradient = original(*args, **kwargs)
            self._end(begun=False, over=True)
            return gradient

        return backward_step
