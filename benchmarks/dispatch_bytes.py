"""What DeepSeek-V3's dispatch costs between nodes, from the plan alone: no process, no network.

256 experts, 8 per token from 4 of 8 groups, expert parallelism 64 on 8 nodes, hidden size 7168,
tokens in BF16, routing weights in FP32. Prints bytes per token and MoE layer that cross nodes, for
upstream's all-to-all and for two-hop in BF16 and FP8, per passage.

    python benchmarks/dispatch_bytes.py
"""

import json

import torch

from dsv3_plugin.dispatch.plan import count_routing, needed
from dsv3_plugin.dispatch.topology import Topology
from dsv3_plugin.dispatch.traffic import all_to_all_traffic, two_hop_traffic
from dsv3_plugin.dispatch.wire import row_widths

V3 = Topology(ranks=64, ranks_per_node=8, experts=256)
GROUPS, GROUPS_PER_TOKEN, TOPK, HIDDEN, TOKENS_PER_RANK = 8, 4, 8, 7168, 512
PASSAGES = ("dispatch", "combine", "combine_gradient", "dispatch_gradient")


def v3_routing(tokens: int, generator: torch.Generator) -> torch.Tensor:
    """`[tokens, 256]`: the report's gate on independent scores, so without skew."""
    scores = torch.rand(tokens, V3.experts, generator=generator)
    by_group = scores.view(tokens, GROUPS, -1)
    best = by_group.topk(2, dim=2).values.sum(2).topk(GROUPS_PER_TOKEN, dim=1).indices
    allowed = torch.zeros(tokens, GROUPS, dtype=torch.bool).scatter_(1, best, True)
    masked = by_group.masked_fill(~allowed[:, :, None], -1.0).view(tokens, V3.experts)
    chosen = torch.zeros(tokens, V3.experts, dtype=torch.bool)
    return chosen.scatter_(1, masked.topk(TOPK, dim=1).indices, True)


def cross_node_bytes() -> dict[str, dict[str, float]]:
    """Per dispatcher and passage: bytes per token that cross nodes; and `copies`, rows that do."""
    generator = torch.Generator().manual_seed(0)
    maps = [v3_routing(TOKENS_PER_RANK, generator) for _ in range(V3.ranks)]
    per_expert = torch.stack([routing.sum(0) for routing in maps])
    counts = torch.stack([count_routing(routing, V3) for routing in maps])
    bfloat16, float32 = torch.bfloat16, torch.float32
    tokens = V3.ranks * TOKENS_PER_RANK
    table: dict[str, dict[str, float]] = {}
    for name, traffic_of in {
        "alltoall": lambda rank: all_to_all_traffic(per_expert, V3, rank, 2 * HIDDEN, 4),
        "two_hop": lambda rank: two_hop_traffic(
            counts, V3, rank, row_widths(V3, HIDDEN, bfloat16, float32, fp8=False)
        ),
        "two_hop fp8": lambda rank: two_hop_traffic(
            counts, V3, rank, row_widths(V3, HIDDEN, bfloat16, float32, fp8=True)
        ),
    }.items():
        ranks = [traffic_of(rank) for rank in range(V3.ranks)]
        table[name] = {
            passage: sum(rank[passage].bytes["other_node"] for rank in ranks) / tokens
            for passage in PASSAGES
        }
    nodes = torch.arange(V3.nodes)
    away = sum(
        float((needed(routing, V3.nodes) & (nodes != V3.node_of[rank])).sum())
        for rank, routing in enumerate(maps)
    )
    sent = sum(
        float(routing.view(-1, V3.nodes, V3.experts_per_node)[:, nodes != V3.node_of[rank]].sum())
        for rank, routing in enumerate(maps)
    )
    table["alltoall"]["copies"] = sent / tokens
    table["two_hop"]["copies"] = table["two_hop fp8"]["copies"] = away / tokens
    return table


def main() -> None:
    table = cross_node_bytes()
    print("bytes per token and layer between nodes (share of upstream's all-to-all)")
    print(f"{'':12} {'copies':>7} " + " ".join(f"{passage:>20}" for passage in PASSAGES))
    for name, row in table.items():
        shares = " ".join(
            f"{row[passage]:12.0f} ({row[passage] / table['alltoall'][passage]:4.0%})"
            for passage in PASSAGES
        )
        print(f"{name:12} {row['copies']:7.2f}  {shares}")
    print(json.dumps({"benchmark": "dispatch_bytes", "rows": table}))


if __name__ == "__main__":
    main()
