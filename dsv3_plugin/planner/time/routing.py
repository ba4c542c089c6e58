"""How many copies of a token travel to its experts, over which link, when routing is balanced.

A token chooses k of E experts, from the allowed groups only. Experts lie in equal, contiguous
shares on the ranks of the expert-parallel group, and these on nodes. What is counted is how many
different nodes and ranks its experts lie on, on average: two hops and DeepEP send one copy to each,
the all-to-all one copy for each expert.
"""

from dataclasses import dataclass
from functools import cache
from math import comb

from dsv3_plugin.planner.setting import Setting


@dataclass(frozen=True)
class Sent:
    """Copies of a token that a rank sends, on average.

    Attributes:
        network: to other nodes.
        nvlink: within a node, those arriving from other nodes included.
    """

    network: float
    nvlink: float


def tokens_sent(setting: Setting) -> Sent:
    """Copies of a token over either link, for the setting's dispatcher."""
    topk = setting.model.moe_router_topk or 0
    ranks = setting.expert
    nearby = min(setting.nvlink_domain, ranks)
    nodes = -(-ranks // nearby)
    elsewhere = 1 - 1 / nodes
    if setting.dispatcher == "alltoall":
        return Sent(topk * elsewhere, topk * (1 / nodes - 1 / ranks))
    experts = setting.model.num_moe_experts or 0
    groups, allowed = setting.model.moe_router_num_groups, setting.model.moe_router_group_topk
    shape = (experts, topk, groups or 1, allowed or 1)
    reached_ranks = bins_hit(*shape, ranks)
    reached_nodes = bins_hit(*shape, nodes)
    # Of the copies for the ranks of a node, one in `nearby` is for the rank that hands them on.
    return Sent(reached_nodes * elsewhere, reached_ranks * (1 - 1 / nearby))


@cache
def bins_hit(experts: int, topk: int, groups: int, allowed: int, bins: int) -> float:
    """Expected number of equal, contiguous bins of experts that a token's experts lie in.

    The allowed groups are any, and the experts any of theirs.
    """
    group = experts // groups
    choices = comb(allowed * group, topk)
    if bins >= groups:
        size = experts // bins
        within = 1 - comb(allowed * group - size, topk) / choices
        return bins * allowed / groups * within
    per_bin = groups // bins
    hit = 0.0
    for inside in range(1, min(per_bin, allowed) + 1):
        ways = comb(per_bin, inside) * comb(groups - per_bin, allowed - inside)
        missed = comb((allowed - inside) * group, topk) / choices
        hit += ways / comb(groups, allowed) * (1 - missed)
    return bins * hit
