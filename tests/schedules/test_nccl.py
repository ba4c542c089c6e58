"""What NCCL's order costs a schedule: nothing with a communicator for every pair of ranks."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3_plugin.errors import UserError
from dsv3_plugin.schedules import nccl
from dsv3_plugin.schedules.costs import Costs, StageCosts, even_stages, relative_stages
from dsv3_plugin.schedules.messages import Step, message_steps
from dsv3_plugin.schedules.nccl import Batch, NcclRun, Operation, Work
from dsv3_plugin.schedules.placement import stage_placement
from dsv3_plugin.schedules.registry import SCHEDULES
from dsv3_plugin.schedules.search.search import search
from dsv3_plugin.schedules.simulate import simulate

KINDS = [kind for kind in SCHEDULES.values() if not kind.searched]
BY_NAME = {"ids": lambda kind: kind.name}


def longer(schedule, costs: StageCosts, links="nccl") -> float:
    """By which part of the ideal a schedule takes longer."""
    return simulate(schedule, costs, links).makespan / simulate(schedule, costs).makespan - 1


@pytest.mark.parametrize(
    ("name", "micro_batches", "takes", "ideal"),
    [("dualpipe_v", 60, 187.0, 169.5), ("dualpipe_v", 120, 337.0, 319.5),
     ("dualpipe", 120, 334.0, 319.0)],
)  # fmt: skip
def test_one_communicator_makes_neighbours_wait_for_each_other(name, micro_batches, takes, ideal):
    schedule = SCHEDULES[name].schedule(16, micro_batches)
    stages = even_stages(schedule, Costs())
    assert simulate(schedule, stages, "nccl-one").makespan == pytest.approx(takes)
    assert simulate(schedule, stages, "nccl").makespan == pytest.approx(ideal)
    assert simulate(schedule, stages).makespan == pytest.approx(ideal)


@pytest.mark.parametrize("kind", KINDS, **BY_NAME)
@pytest.mark.parametrize(
    ("pp", "more"), [(2, 0), (2, 5), (3, 4), (4, 0), (4, 6), (6, 20), (8, 8), (16, 9), (16, 60)]
)
def test_a_communicator_for_every_pair_costs_nothing(kind, pp, more):
    micro_batches = max(kind.least_micro_batches(pp), pp) + more
    for schedule in kind.forms(pp, micro_batches):
        assert longer(schedule, even_stages(schedule, Costs())) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS, **BY_NAME)
@pytest.mark.parametrize(("pp", "more"), [(4, 6), (8, 8), (8, 40)])
def test_messages_that_take_time_cost_little_more(kind, pp, more):
    """58.7 MB ([4096, 1, 7168] in BF16) at 50 GB/s are a fiftieth of a P-th of DeepSeek-V3."""
    for schedule in kind.forms(pp, max(kind.least_micro_batches(pp), pp) + more):
        assert 0 <= longer(schedule, even_stages(schedule, Costs(occupancy=0.02))) < 0.01


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_nor_does_it_whatever_the_stages_cost(data):
    kind = data.draw(st.sampled_from(KINDS))
    pp = 2 * data.draw(st.integers(1, 3))
    micro_batches = max(kind.least_micro_batches(pp), pp) + 2 * data.draw(st.integers(0, 6))
    times = st.floats(0.3, 3.0)
    forward, input_, weight = (data.draw(times) for _ in range(3))
    longest = max(forward, input_ + weight)
    pair = longest + data.draw(st.floats(0, 1)) * (forward + input_ + weight - longest)
    costs = Costs(forward, input_, weight, min(pair, forward + input_ + weight))
    for schedule in kind.forms(pp, micro_batches):
        stages = len(schedule.streams[0])
        sizes = data.draw(st.lists(st.floats(0.2, 5), min_size=stages, max_size=stages))
        uneven = relative_stages(costs, pp, sizes).repeated(len(schedule.streams))
        assert longer(schedule, uneven) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("pp", "per_rank", "micro_batches"), [(4, 1, 6), (4, 2, 10), (3, 4, 7)])
def test_nor_for_a_schedule_that_was_found(pp, per_rank, micro_batches):
    ranks = stage_placement(pp, per_rank)
    costs = relative_stages(Costs(), pp, [1.0 + (stage % 3) / 4 for stage in range(len(ranks))])
    found = search(pp, micro_batches, costs, effort=0.02)
    assert longer(found.schedule, costs) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("links", ["nccl", "nccl-one"])
def test_every_action_is_run_once_after_what_it_needs(links):
    schedule = SCHEDULES["dualpipe_v"].schedule(4, 10)
    costs = even_stages(schedule, Costs(latency=0.1, occupancy=0.05))
    timeline = simulate(schedule, costs, links)
    for rank, row in enumerate(timeline.spans):
        assert [(span.slot, span.action) for span in row] == list(schedule.actions(rank))
        assert all(a.end <= b.start for a, b in pairwise(row))


def test_a_rank_that_posts_too_late_would_hang(monkeypatch):
    """The last rank computes first, and posts its receives behind what needs them."""
    schedule = SCHEDULES["1f1b"].schedule(2, 2)
    first, last = message_steps(schedule)
    late = [Step(step.action, ()) for step in last]
    late.append(Step(None, tuple(batch for step in last for batch in step.batches)))
    monkeypatch.setattr(nccl, "message_steps", lambda schedule: [first, late])
    with pytest.raises(UserError, match=r"1f1b: batches of messages wait .* would hang"):
        simulate(schedule, even_stages(schedule, Costs()), "nccl")


def test_a_batch_queues_behind_one_for_another_rank_on_its_communicator_alone():
    """Rank 0 waits for rank 1, who comes late, before what it has for rank 2 can go."""
    costs = even_stages(SCHEDULES["1f1b"].schedule(3, 3), Costs())
    long = SCHEDULES["1f1b"].schedule(3, 3).rows[0][0]

    def run(communicators):
        to_one, to_two = communicators
        from_zero = Batch(2, to_two, (Operation(0, sends=False),))
        programs = [
            [Batch(0, to_one, (Operation(1, sends=True),)),
             Batch(0, to_two, (Operation(2, sends=True),))],
            [Work(long, ()), Batch(1, to_one, (Operation(0, sends=False),))],
            [from_zero, Work(None, (from_zero,))],
        ]  # fmt: skip
        return NcclRun(programs, costs).clock[2]

    assert (run("aa"), run("ab")) == (1.0, 0.0)


def test_an_end_without_another_is_waited_for_in_vain():
    costs = even_stages(SCHEDULES["1f1b"].schedule(2, 2), Costs())
    alone = Batch(1, "a", (Operation(0, sends=False),))
    run = NcclRun([[], [alone, Work(None, (alone,))]], costs)
    assert run.stuck == {1: alone}
