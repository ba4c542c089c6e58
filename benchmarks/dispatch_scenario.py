"""A cluster and a load for `dispatch.py`, and what a rank sees of a layer there."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Scenario:
    """A cluster and a load.

    Attributes:
        megabits: per second, of each node's link; None: not limited.
        tokens: per rank; each goes to 8 of 32 experts, the same number of each group.
        believed: ranks per node that the dispatcher is told, where that is not the truth.
        alone: the dispatch of the forward alone, not the layer.
    """

    name: str
    nodes: int
    ranks_per_node: int
    megabits: int | None
    tokens: int
    groups: int = 4
    repeats: int = 12
    hidden: int = 1024
    believed: int | None = None
    alone: bool = False

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node


@dataclass(frozen=True)
class Sample:
    """One layer, seen by one rank: what its node put on the link, and what the rank counted."""

    seconds: float
    kernel_bytes: int
    counted_bytes: int


def bytes_sent() -> int:
    """What this node has put on its link so far, by the kernel's counter."""
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "eth0":
            return int(numbers.split()[8])
    return 0
