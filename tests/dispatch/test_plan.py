"""Topology, plan, copies and closed forms against loops over single tokens."""

from collections import Counter
from collections.abc import Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3_plugin.dispatch.copies import Copies
from dsv3_plugin.dispatch.moe_layer import nodes_of_group
from dsv3_plugin.dispatch.plan import count_routing, needed, rows_by_destination, split_sizes
from dsv3_plugin.dispatch.topology import (
    Topology,
    group_topology,
    grouping_note,
    node_limit,
    ranks_per_node,
)
from dsv3_plugin.dispatch.traffic import (
    LINK_CLASSES,
    RowWidths,
    Traffic,
    all_to_all_traffic,
    two_hop_traffic,
)
from dsv3_plugin.errors import UserError

topologies = st.builds(
    lambda nodes, per_node, per_rank: Topology(
        ranks=nodes * per_node, ranks_per_node=per_node, experts=nodes * per_node * per_rank
    ),
    nodes=st.integers(1, 4),
    per_node=st.integers(1, 4),
    per_rank=st.integers(1, 3),
)


@st.composite
def routings(draw) -> tuple[Topology, list[torch.Tensor]]:
    """A topology, and each rank's routing map: any number of tokens, of experts per token."""
    topology = draw(topologies)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    density = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    tokens = draw(st.lists(st.integers(0, 9), min_size=topology.ranks, max_size=topology.ranks))
    return topology, [
        torch.rand(number, topology.experts, generator=generator) < density for number in tokens
    ]


@settings(max_examples=60)
@given(routings())
def test_splits_are_those_of_a_loop_over_tokens(drawn):
    topology, maps = drawn
    ranks, per_node = topology.ranks, topology.ranks_per_node
    rail = torch.zeros(ranks, ranks, dtype=torch.int64)  # [from, to], hop 1
    node = torch.zeros(ranks, ranks, dtype=torch.int64)  # hop 2
    per_expert = torch.zeros(topology.experts, dtype=torch.int64)
    widest = 0
    for source, routing in enumerate(maps):
        for token in routing:
            experts = token.nonzero().flatten().tolist()
            owners = {expert // topology.experts_per_rank for expert in experts}
            nodes = {owner // per_node for owner in owners}
            widest = max(widest, len(nodes))
            for expert in experts:
                per_expert[expert] += 1
            for target in nodes:
                rail[source, target * per_node + source % per_node] += 1
            for owner in owners:
                node[owner // per_node * per_node + source % per_node, owner] += 1
    counts = torch.stack([count_routing(routing, topology) for routing in maps])
    for rank in range(ranks):
        splits = split_sizes(counts, topology, rank)
        assert splits.to_nodes == rail[rank, topology.rail_ranks(rank)].tolist()
        assert splits.from_nodes == rail[topology.rail_ranks(rank), rank].tolist()
        assert splits.to_ranks == node[rank, topology.node_ranks(rank)].tolist()
        assert splits.from_ranks == node[topology.node_ranks(rank), rank].tolist()
        first = rank * topology.experts_per_rank
        expected = per_expert[first : first + topology.experts_per_rank]
        assert splits.per_expert == expected.tolist()
        assert splits.widest == widest


@settings(max_examples=40)
@given(routings())
def test_traffic_is_that_of_a_loop_over_tokens(drawn):
    topology, maps = drawn
    counts = torch.stack([count_routing(routing, topology) for routing in maps])
    per_expert = torch.stack([routing.sum(0) for routing in maps])
    widths = RowWidths(
        dispatch_rail=1_000_003,
        dispatch_node=100_019,
        combine=10_007,
        combine_gradient=101,
        dispatch_gradient_rail=3,
        dispatch_gradient_node=7,
    )

    def link(sender: int, receiver: int) -> str:
        if sender == receiver:
            return "same_rank"
        per_node = topology.ranks_per_node
        return "same_node" if sender // per_node == receiver // per_node else "other_node"

    two_hop = {passage: dict.fromkeys(LINK_CLASSES, 0) for passage in ("rows", "out", "back")}
    upstream = dict.fromkeys(LINK_CLASSES, 0)
    pairs, hops = set(), set()  # who sends to whom, and on which hop
    for source, routing in enumerate(maps):
        for token in routing:
            owners = [e // topology.experts_per_rank for e in token.nonzero().flatten().tolist()]
            for owner in owners:
                upstream[link(source, owner)] += 5
                pairs.add((source, owner))
            for target in {owner // topology.ranks_per_node for owner in owners}:
                forwarder = target * topology.ranks_per_node + source % topology.ranks_per_node
                if topology.nodes > 1:
                    hops.add(("rail", source, forwarder))
                    two_hop["rows"][link(source, forwarder)] += 1
                    two_hop["out"][link(source, forwarder)] += widths.dispatch_rail
                    two_hop["back"][link(source, forwarder)] += widths.dispatch_gradient_rail
                for owner in {o for o in owners if o // topology.ranks_per_node == target}:
                    if topology.ranks_per_node > 1:
                        hops.add(("node", forwarder, owner))
                        two_hop["rows"][link(forwarder, owner)] += 1
                        two_hop["out"][link(forwarder, owner)] += widths.dispatch_node
                        two_hop["back"][link(forwarder, owner)] += widths.dispatch_gradient_node
    ranks = range(topology.ranks)
    ours = [two_hop_traffic(counts, topology, rank, widths) for rank in ranks]
    theirs = [all_to_all_traffic(per_expert, topology, rank, 5, 1) for rank in ranks]

    def total(parts: list[dict[str, Traffic]], passage: str) -> dict[str, int]:
        return sum((part[passage] for part in parts), Traffic()).bytes

    def messages(parts: list[dict[str, Traffic]], passage: str) -> dict[str, int]:
        return sum((part[passage] for part in parts), Traffic()).messages

    def by_link(links: Iterable[tuple[int, int]], collectives: int = 1) -> dict[str, int]:
        numbers = Counter(link(sender, receiver) for sender, receiver in links)
        return {kind: collectives * numbers[kind] for kind in LINK_CLASSES}

    everyone = [(sender, receiver) for sender in ranks for receiver in ranks if sender != receiver]
    for passage in ("dispatch", "combine", "combine_gradient", "dispatch_gradient"):
        assert messages(ours, passage) == by_link((sender, to) for _, sender, to in hops)
        with_weights = 2 if passage.startswith("dispatch") else 1
        assert messages(theirs, passage) == by_link(pairs, with_weights)
    for counted in (ours, theirs):
        assert messages(counted, "counts") == by_link(everyone)

    assert total(ours, "dispatch") == two_hop["out"]
    assert total(ours, "dispatch_gradient") == two_hop["back"]
    for passage, width in (("combine", 10_007), ("combine_gradient", 101)):
        assert total(ours, passage) == {k: v * width for k, v in two_hop["rows"].items()}
    assert total(theirs, "combine") == upstream
    assert total(theirs, "dispatch") == {k: v // 5 * 6 for k, v in upstream.items()}


@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(0, 12), st.integers(1, 5)),
    density=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_copies_are_those_of_a_loop(shape, density, seed):
    generator = torch.Generator().manual_seed(seed)
    needs = torch.rand(shape, generator=generator) < density
    pairs = [(d, r) for d in range(shape[1]) for r in range(shape[0]) if needs[r, d]]
    destination, source = rows_by_destination(needs, len(pairs))
    assert list(zip(destination.tolist(), source.tolist(), strict=True)) == pairs

    rows = torch.randn(shape[0], 6, generator=generator)
    copies = Copies(needs, len(pairs))
    taken = copies.take(rows)
    assert torch.equal(taken, torch.stack([rows[r] for _, r in pairs]) if pairs else rows[:0])
    summed = torch.zeros_like(rows)
    for copy, (_, row) in zip(taken, pairs, strict=True):
        summed[row] += copy
    torch.testing.assert_close(copies.sum(taken), summed)

    slots = torch.randn(shape[0], shape[1] * 2, generator=generator)
    parts = copies.take_slots(slots)
    kept = slots.view(*shape, 2) * needs[:, :, None]
    assert torch.equal(parts, torch.stack([kept[r, d] for d, r in pairs]) if pairs else parts[:0])
    assert torch.equal(copies.put_slots(parts), kept.view_as(slots))


def test_sums_are_rounded_once():
    needs = torch.ones(1, 300, dtype=torch.bool)
    ones = torch.ones(300, 8, dtype=torch.bfloat16)
    # In BF16 a running sum of ones stands still at 256.
    assert Copies(needs, 300).sum(ones).tolist() == [[300.0] * 8]


@settings(max_examples=30)
@given(routings())
def test_needed_is_any_of_a_part(drawn):
    topology, maps = drawn
    for routing in maps:
        for parts in (topology.nodes, topology.ranks):
            size = topology.experts // parts
            expected = [
                [bool(t[p * size : (p + 1) * size].any()) for p in range(parts)] for t in routing
            ]
            assert needed(routing, parts).tolist() == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"LOCAL_WORLD_SIZE": "8", "SLURM_NTASKS_PER_NODE": "4"}, 8),
        ({"SLURM_NTASKS_PER_NODE": "4"}, 4),
        ({"SLURM_TASKS_PER_NODE": "8(x4)"}, 8),
        ({"SLURM_TASKS_PER_NODE": "8(x2),8"}, 8),
    ],
)
def test_auto_reads_the_launcher(environment, expected):
    assert ranks_per_node("auto", environment) == expected
    assert ranks_per_node(3, environment) == 3


def test_auto_without_a_launcher_says_what_to_do():
    with pytest.raises(UserError, match="torchrun or srun, or give the number"):
        ranks_per_node("auto", {})
    with pytest.raises(UserError, match=r"equal nodes.*or set dispatch\.ranks_per_node"):
        ranks_per_node("auto", {"SLURM_TASKS_PER_NODE": "8(x2),4"})
    for said in ("8(x2),four", "eight", "0", "-2"):
        with pytest.raises(UserError, match=r"is no number .* or set dispatch\.ranks_per_node"):
            ranks_per_node("auto", {"SLURM_TASKS_PER_NODE": said})


def test_a_silent_launcher_means_one_node_and_a_contradictory_one_does_not(monkeypatch):
    monkeypatch.setattr("torch.distributed.get_process_group_ranks", lambda group: [0, 1, 2, 3])
    for name in ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    assert nodes_of_group(None, "auto") == [0, 0, 0, 0]
    assert nodes_of_group(None, 3) == [0, 0, 0, 1]
    monkeypatch.setenv("SLURM_TASKS_PER_NODE", "3,1")
    with pytest.raises(UserError, match="equal nodes"):
        nodes_of_group(None, "auto")
    assert nodes_of_group(None, 2) == [0, 0, 1, 1]


def test_groups_find_their_nodes():
    assert group_topology(range(64), 8, 256) == Topology(64, 8, 256)
    assert group_topology(range(4, 8), 8, 16) == Topology(4, 4, 16)  # a part of one node
    assert group_topology([0, 2, 4, 6], 4, 8) == Topology(4, 2, 8)  # every second rank
    for ranks, per_node in ((range(6), 4), ([0, 4, 1, 5], 4), (range(2, 8), 4)):
        with pytest.raises(UserError, match="same number on every node"):
            group_topology(list(ranks), per_node, 24)
    with pytest.raises(UserError, match="divisor of 6"):
        Topology(6, 4, 24)
    with pytest.raises(UserError, match="10 experts do not divide over 4 ranks"):
        Topology(4, 2, 10)


def test_groups_that_match_nodes_promise_a_limit():
    v3 = Topology(64, 8, 256)
    assert node_limit(v3, 8, 4) == 4
    assert grouping_note(v3, 8, 4) is None
    assert node_limit(v3, 16, 4) == 4  # two groups a node
    assert node_limit(Topology(16, 8, 256), 8, 4) == 2
    assert node_limit(v3, None, None) is None
    assert node_limit(v3, 4, 2) is None  # a group over two nodes
    assert "4 routing groups over 8 nodes" in grouping_note(v3, 4, 2)
    assert "without groups" in grouping_note(v3, None, None)
    assert grouping_note(Topology(8, 8, 256), None, None) is None  # one node: nothing to lose
