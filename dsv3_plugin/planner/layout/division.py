"""What is divided when layers are laid out over stages: whose layers, among whom, at what cost."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from dsv3_plugin.planner.stages import Stage


@dataclass(frozen=True)
class Division:
    """What is divided among whom, and what it costs.

    Attributes:
        kinds: of each decoder layer, 1 for mixture-of-experts and 0 for dense.
        mtp: layers of multi-token prediction.
        ranks: of each pipeline rank, the stages of the model that it holds. Ranks that hold the
            same (two copies of the model) stand for one another; no two share a part of theirs.
        seconds: that a rank with these stages is busy per micro-batch; no less with more layers.
        memory: bytes of a pipeline rank that holds these stages; no less with more layers.
        limit: bytes that it may hold.
        step: seconds of a step with these stages, along the model.
    """

    kinds: tuple[int, ...]
    mtp: int
    ranks: tuple[tuple[int, ...], ...]
    seconds: Callable[[Sequence[Stage]], float]
    step: Callable[[Sequence[Stage]], float]
    memory: Callable[[int, Sequence[Stage]], float] = lambda rank, stages: 0.0
    limit: float = math.inf

    @cached_property
    def depth(self) -> int:
        """Number of stages of the model."""
        return 1 + max(stage for held in self.ranks for stage in held)

    @cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Stages that lie together; each stage is in one."""
        return tuple(dict.fromkeys(tuple(sorted(held)) for held in self.ranks))

    @cached_property
    def _moe_before(self) -> list[int]:
        before = [0]
        for is_moe in self.kinds:
            before.append(before[-1] + is_moe)
        return before

    def least(self, stage: int) -> int:
        """Decoder layers that a stage must hold; the first and the last have something else."""
        return int(0 < stage < self.depth - 1)

    def stage(self, number: int, first: int, layers: int) -> Stage:
        """A stage with so many layers of the model, from the one numbered `first` on."""
        moe = self._moe_before[first + layers] - self._moe_before[first]
        last = number == self.depth - 1
        return Stage(
            embedding=number == 0,
            dense=layers - moe,
            moe=moe,
            mtp=self.mtp if last else 0,
            head=last,
        )

    def stages(self, layers: Sequence[int]) -> list[Stage]:
        """The stages that hold these numbers of decoder layers, along the model."""
        firsts = [0, *accumulate(layers)]
        return [self.stage(n, firsts[n], layers[n]) for n in range(self.depth)]

    def busy(self, layers: Sequence[int]) -> list[float]:
        """Seconds of each group of stages."""
        stages = self.stages(layers)
        return [self.seconds([stages[s] for s in group]) for group in self.groups]

    def bytes(self, layers: Sequence[int]) -> list[float]:
        """Bytes of each pipeline rank."""
        stages = self.stages(layers)
        return [
            self.memory(rank, [stages[s] for s in held]) for rank, held in enumerate(self.ranks)
        ]

    def fits(self, layers: Sequence[int]) -> bool:
        """Whether every rank has room."""
        return max(self.bytes(layers)) <= self.limit

    def too_much(self, group: int, stages: Sequence[Stage]) -> tuple[int, float] | None:
        """The rank that these stages of a group do not fit into, and their bytes there."""
        if self.limit == math.inf:
            return None
        for rank, places in self._holders[group]:
            needed = self.memory(rank, [stages[place] for place in places])
            if needed > self.limit:
                return rank, needed
        return None

    @cached_property
    def _holders(self) -> list[list[tuple[int, list[int]]]]:
        """Of each group the ranks that hold it, and the places in it of their stages, in order."""
        return [
            [
                (rank, [group.index(stage) for stage in held])
                for rank, held in enumerate(self.ranks)
                if set(held) == set(group)
            ]
            for group in self.groups
        ]
