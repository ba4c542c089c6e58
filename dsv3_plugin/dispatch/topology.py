"""Which expert lives on which rank, and which rank on which node.

Expert-parallel ranks are numbered 0 … E−1; rank r is on node r // L at local index r % L, with L
ranks per node; rank r holds experts r·X/E … (r+1)·X/E − 1. A token reaches a node through the
*rail*: the ranks of one local index on all nodes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dsv3_plugin.errors import UserError

RanksPerNode = int | Literal["auto"]

# What torchrun and Slurm say about the processes on this node, in this order. The last looks like
# "8" or "8(x4)", or "8(x4),4" when nodes differ.
_LOCAL_WORLD_SIZES = ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE")


@dataclass(frozen=True)
class Topology:
    """The shape of one expert-parallel group.

    Attributes:
        ranks: E, the size of the group.
        ranks_per_node: L, of this group's ranks.
        experts: X, in the whole group.
    """

    ranks: int
    ranks_per_node: int
    experts: int

    def __post_init__(self) -> None:
        if self.ranks % self.ranks_per_node:
            raise UserError(
                f"expert parallelism over {self.ranks} ranks does not fill nodes of "
                f"{self.ranks_per_node}: set dispatch.ranks_per_node to a divisor of {self.ranks}"
            )
        if self.experts % self.ranks:
            raise UserError(f"{self.experts} experts do not divide over {self.ranks} ranks")

    @property
    def nodes(self) -> int:
        """N."""
        return self.ranks // self.ranks_per_node

    @property
    def experts_per_rank(self) -> int:
        return self.experts // self.ranks

    @property
    def experts_per_node(self) -> int:
        return self.experts // self.nodes

    @property
    def node_of(self) -> list[int]:
        """The node of every rank. `[E]`"""
        return [rank // self.ranks_per_node for rank in range(self.ranks)]

    def local_index(self, rank: int) -> int:
        return rank % self.ranks_per_node

    def node_ranks(self, rank: int) -> list[int]:
        """The ranks that share `rank`'s node, itself included, in order."""
        first = rank - self.local_index(rank)
        return list(range(first, first + self.ranks_per_node))

    def rail_ranks(self, rank: int) -> list[int]:
        """The ranks of `rank`'s local index, one per node, in order."""
        return list(range(self.local_index(rank), self.ranks, self.ranks_per_node))


def ranks_per_node(setting: RanksPerNode, environment: Mapping[str, str]) -> int:
    """Processes per node: the setting itself, or for `auto` what torchrun or Slurm says.

    Raises:
        UserError: `auto`, and the environment does not say.
    """
    per_node = launched_per_node(environment) if setting == "auto" else setting
    if per_node is None:
        raise UserError(
            "dispatch.ranks_per_node: auto found no "
            + ", ".join(_LOCAL_WORLD_SIZES)
            + " in the environment: start with torchrun or srun, or give the number"
        )
    return per_node


def launched_per_node(environment: Mapping[str, str]) -> int | None:
    """Processes per node as torchrun or Slurm says; None where neither says anything.

    Raises:
        UserError: nodes differ, or what is said cannot be read.
    """
    for name in _LOCAL_WORLD_SIZES:
        said = environment.get(name, "")
        numbers = {entry.partition("(x")[0] for entry in said.split(",") if entry}
        if not all(number.isdecimal() and int(number) for number in numbers):
            raise UserError(
                f"{name}={said} in the environment is no number of processes per node, such as 8 "
                "or 8(x4): correct it, or set dispatch.ranks_per_node"
            )
        if len(numbers) > 1:
            raise UserError(
                f"{name}={said}: dispatch needs equal nodes; start the same number of processes on "
                "each, or set dispatch.ranks_per_node"
            )
        if numbers:
            return int(numbers.pop())
    return None


def group_topology(global_ranks: Sequence[int], ranks_per_node: int, experts: int) -> Topology:
    """Topology of the expert-parallel group made of these global ranks, in group order.

    A node may hold ranks of several groups, and a group that fits in one node has that one node.

    Raises:
        UserError: the group's ranks are spread unevenly over nodes, or do not follow one another.
    """
    nodes = [rank // ranks_per_node for rank in global_ranks]
    per_node = nodes.count(nodes[0])
    in_order = [node for node in dict.fromkeys(nodes) for _ in range(per_node)]
    if nodes != in_order:
        raise UserError(
            f"expert-parallel ranks {list(global_ranks)} lie on nodes {nodes} with "
            f"{ranks_per_node} ranks per node: two-hop dispatch needs the same number on every "
            f"node, node after node; choose an expert parallelism that is a multiple of "
            f"{ranks_per_node} or divides it, or set dispatch.ranks_per_node"
        )
    return Topology(ranks=len(nodes), ranks_per_node=per_node, experts=experts)


def node_limit(topology: Topology, groups: int | None, groups_per_token: int | None) -> int | None:
    """The number of nodes a token may need, as the router promises; None when it promises nothing.

    The promise holds when every routing group lies within one node.
    """
    if not groups or not groups_per_token:
        return None
    if topology.experts_per_node % (topology.experts // groups):
        return None
    return min(groups_per_token, topology.nodes)


def grouping_note(
    topology: Topology, groups: int | None, groups_per_token: int | None
) -> str | None:
    """What to tell a user whose routing groups do not match the nodes; None when they do."""
    if topology.nodes == 1 or node_limit(topology, groups, groups_per_token) is not None:
        return None
    routing = f"{groups} routing groups" if groups else "routing without groups"
    return (
        f"{routing} over {topology.nodes} nodes: a group is no part of one node, so a token may "
        f"need every node and two-hop dispatch saves little; set moe_router_num_groups to a "
        f"multiple of {topology.nodes}"
    )
