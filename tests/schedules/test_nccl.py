"""What NCCL's order costs a schedule: nothing with a communicator for every pair of ranks."""

from itertools import pairwise

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.schedules import nccl
from dsv3_plugin.schedules.costs import Costs, even_stages
from dsv3_plugin.schedules.messages import Step, message_steps
from dsv3_plugin.schedules.nccl import one, per_pair, simulate_nccl
from dsv3_plugin.schedules.registry import SCHEDULES
from dsv3_plugin.schedules.simulate import simulate

KINDS = [kind for kind in SCHEDULES.values() if not kind.searched]


def both(name, pp, micro_batches, communicator, **costs):
    schedule = SCHEDULES[name].schedule(pp, micro_batches)
    stages = even_stages(schedule, Costs(**costs))
    ideal = simulate(schedule, stages).makespan
    return simulate_nccl(schedule, stages, communicator).makespan, ideal


@pytest.mark.parametrize(
    ("name", "micro_batches", "takes", "ideal"),
    [("dualpipe_v", 60, 187.0, 169.5), ("dualpipe_v", 120, 337.0, 319.5),
     ("dualpipe", 120, 334.0, 319.0)],
)  # fmt: skip
def test_one_communicator_makes_neighbours_wait_for_each_other(name, micro_batches, takes, ideal):
    assert both(name, 16, micro_batches, one) == pytest.approx((takes, ideal))
    assert both(name, 16, micro_batches, per_pair) == pytest.approx((ideal, ideal))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize(("pp", "more"), [(2, 0), (4, 0), (4, 6), (8, 8), (6, 20)])
def test_a_communicator_for_every_pair_costs_nothing(kind, pp, more):
    micro_batches = max(kind.least_micro_batches(pp), pp) + more
    for schedule in kind.forms(pp, micro_batches):
        stages = even_stages(schedule, Costs())
        ideal = simulate(schedule, stages).makespan
        assert simulate_nccl(schedule, stages).makespan == pytest.approx(ideal, rel=0.01)


def test_every_action_is_run_once_after_what_it_needs():
    schedule = SCHEDULES["dualpipe_v"].schedule(4, 10)
    timeline = simulate_nccl(schedule, even_stages(schedule, Costs(latency=0.1, occupancy=0.05)))
    for rank, row in enumerate(timeline.spans):
        assert [(span.slot, span.action) for span in row] == list(schedule.actions(rank))
        assert all(a.end <= b.start for a, b in pairwise(row))


def test_a_rank_that_posts_too_late_would_hang(monkeypatch):
    """The last rank computes first, and posts its receives behind what needs them."""
    schedule = SCHEDULES["1f1b"].schedule(2, 2)
    first, last = message_steps(schedule)
    late = [Step(step.action, ()) for step in last]
    late.append(Step(None, tuple(message for step in last for message in step.messages)))
    monkeypatch.setattr(nccl, "message_steps", lambda schedule: [first, late])
    with pytest.raises(UserError, match=r"1f1b: batches of messages wait .* would hang"):
        simulate_nccl(schedule, even_stages(schedule, Costs()))
