"""Groups for messages between stages: whom they join, in what order, and how many a rank makes."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dsv3_plugin.schedules.messages import message_steps
from dsv3_plugin.schedules.placement import placement_of
from dsv3_plugin.schedules.registry import SCHEDULES
from tests.gloo_ranks import run_ranks

KINDS = [kind for kind in SCHEDULES.values() if not kind.searched]


def shortest(kind, pp):
    return kind.schedule(pp, max(kind.least_micro_batches(pp), pp))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("pp", [2, 4, 8])
def test_neighbours_are_the_ranks_that_send_to_each_other(kind, pp):
    schedule = shortest(kind, pp)
    sent = {
        (min(rank, message.peer), max(rank, message.peer))
        for rank, steps in enumerate(message_steps(schedule))
        for step in steps
        for message in step.messages
    }
    assert placement_of(schedule).neighbours == sent


@pytest.mark.parametrize(
    ("pairs", "number"),
    [
        ([(rank, rank + 1) for rank in range(15)], 2),
        ([(0, 3), *((rank, rank + 1) for rank in range(3))], 2),
        ([(0, 4), *((rank, rank + 1) for rank in range(4))], 3),
        ([(0, 1)], 1),
    ],
    ids=["line", "even ring", "odd ring", "pair"],
)
def test_every_pair_meets_once_and_nobody_meets_two_at_a_time(pairs, number):
    from dsv3_plugin.pipeline.neighbours import rounds

    found = rounds(pairs)
    assert len(found) == number
    met = [(a, b) for partners in found for a, b in partners.items()]
    assert all((b, a) in met for a, b in met)
    assert sorted(pair for pair in met if pair[0] < pair[1]) == sorted(pairs)


def _exchange(rank: int) -> list[float]:
    """What a rank of a ring of three hears from its neighbours, after uneven beginnings."""
    from dsv3_plugin.pipeline.neighbours import Neighbours

    if rank == 1:  # as a stage with experts has groups of its dispatcher's
        dist.new_group([rank], use_local_synchronization=True)
    ring = placement_of(SCHEDULES["interleaved"].schedule(3, 3))
    neighbours = Neighbours(ring, dist.group.WORLD)
    heard = []
    for peer in sorted({0, 1, 2} - {rank}):
        received = torch.zeros(1)
        operations = [
            dist.P2POp(dist.isend, torch.tensor([float(rank)]), peer, neighbours.group(peer)),
            dist.P2POp(dist.irecv, received, peer, neighbours.group(peer)),
        ]
        for work in dist.batch_isend_irecv(operations):
            work.wait()
        heard.append(received.item())
    whole = dist.new_group(list(range(3)))  # as upstream makes them: every rank every group
    total = torch.tensor([float(rank)])
    dist.all_reduce(total, group=whole)
    return [*heard, total.item()]


def test_ranks_that_have_made_unlike_numbers_of_groups_find_each_other(tmp_path):
    assert run_ranks(3, _exchange, scratch=tmp_path) == [[1, 2, 3], [0, 2, 3], [0, 1, 3]]


@contextlib.contextmanager
def _pretended_world(rank: int) -> Iterator[Any]:
    """2048 ranks, 16 to a pipeline, of which this process is one."""
    from megatron.core import parallel_state
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=2048)
    try:
        parallel_state.initialize_model_parallel(
            pipeline_model_parallel_size=16,
            expert_model_parallel_size=64,
            create_gloo_process_groups=False,
        )
        yield parallel_state.get_pipeline_model_parallel_group()
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


@pytest.mark.parametrize(("name", "rank"), [("dualpipe_v", 0), ("dualpipe", 3 * 128 + 5)])
def test_a_rank_of_many_makes_its_own_groups_alone(monkeypatch, name, rank):
    """However many ranks there are, and asking none but those of its pipeline."""
    from dsv3_plugin.pipeline.neighbours import Neighbours
    from dsv3_plugin.pipeline.replicas import Replicas

    placement = placement_of(shortest(SCHEDULES[name], 16))
    made = []
    with _pretended_world(rank) as pipeline, monkeypatch.context() as patch:
        new_group = dist.new_group
        patch.setattr(
            dist, "new_group", lambda ranks, **kw: made.append(ranks) or new_group(ranks, **kw)
        )
        patch.setattr(dist, "all_gather_object", None)
        neighbours = Neighbours(placement, pipeline)
        place = pipeline.rank()
        peers = [peer for peer in (place - 1, place + 1) if 0 <= peer < 16]
        for peer in peers:
            members = sorted([rank, neighbours.ranks[peer]])
            assert dist.get_process_group_ranks(neighbours.group(peer)) == members
        assert len(made) == 2
        assert all(rank in ranks for ranks in made)
        if placement.copies == 2:
            mirror = Replicas(placement).group
            other = neighbours.ranks[15 - place]
            assert dist.get_process_group_ranks(mirror) == sorted([rank, other])
            assert len(made) == 3
