"""Times: the published table to the digit, and small cases worked out by hand."""

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.schedules.actions import Schedule, compute_only, parse_csv
from dsv3_plugin.schedules.costs import Costs, StageCosts, even_stages, sized_stages
from dsv3_plugin.schedules.dualpipe import dualpipe
from dsv3_plugin.schedules.dualpipe_v import dualpipe_v
from dsv3_plugin.schedules.interleaved import interleaved
from dsv3_plugin.schedules.one_f_one_b import one_f_one_b
from dsv3_plugin.schedules.simulate import simulate
from dsv3_plugin.schedules.timeline import Timeline
from dsv3_plugin.schedules.zb1p import zb1p
from dsv3_plugin.schedules.zbv import zbv


def timed(schedule: Schedule, **costs: float) -> Timeline:
    return simulate(schedule, even_stages(schedule, Costs(**costs)))


def of_text(text: str) -> Schedule:
    return compute_only("by hand", parse_csv(text, "by hand"))


def overlapped_v4(pp: int, micro_batches: int) -> Schedule:
    return interleaved(pp, micro_batches, vp=4, overlap=True)


@pytest.mark.parametrize(
    ("maker", "at_20", "at_60", "peak_at_60"),
    [
        # idle % / makespan at 8 ranks and 20 and 60 micro-batches; peak activations at 60
        (one_f_one_b, "25.93 / 81", "10.45 / 201", 8),
        (interleaved, "14.89 / 70.5", "5.51 / 190.5", 12.5),
        (zb1p, "10.45 / 67", "3.74 / 187", 8),
        (zbv, "5.51 / 63.5", "1.91 / 183.5", 8),
        (dualpipe, "6.99 / 59", "2.59 / 159", 9),
        (dualpipe_v, "7.72 / 59.5", "2.88 / 159.5", 8.5),
        (overlapped_v4, "7.40 / 59.125", "2.75 / 159.125", 11.5),
    ],
)
def test_the_published_comparison(maker, at_20, at_60, peak_at_60):
    def row(timeline: Timeline) -> str:
        return f"{100 * timeline.idle_fraction:.2f} / {timeline.makespan:g}"

    assert row(timed(maker(8, 20))) == at_20
    at = timed(maker(8, 60))
    assert row(at) == at_60
    assert max(at.peak_activations) == peak_at_60


@pytest.mark.parametrize("micro_batches", [4, 7, 20])
@pytest.mark.parametrize("pp", [2, 4, 5])
def test_bubbles_are_those_of_the_papers(pp, micro_batches):
    """(P-1)(F+B) for 1F1B and (P-1)(F+I-W) for ZB1P, for any costs with W <= F <= I."""
    costs = {"forward": 1.25, "input": 1.5, "weight": 0.75, "pair": 3.0}
    work = micro_batches * 3.5
    one = timed(one_f_one_b(pp, micro_batches), **costs).makespan
    assert one == pytest.approx(work + (pp - 1) * 3.5)
    if micro_batches >= 2 * pp:
        zero = timed(zb1p(pp, micro_batches), **costs).makespan
        assert zero == pytest.approx(work + (pp - 1) * 2.0)


@pytest.mark.parametrize(("pp", "micro_batches"), [(4, 8), (8, 20), (8, 60), (16, 32)])
def test_the_bubble_of_dualpipe_is_the_reports(pp, micro_batches):
    """(P/2-1)(F&B+B-3W) on the middle ranks; where pairs save nothing, on every rank."""
    timeline = timed(dualpipe(pp, micro_batches))
    assert max(timeline.idle_per_rank) == (pp / 2 - 1) * (2.5 + 2 - 3)
    assert set(timeline.peak_activations) == {pp + 1}
    unpaired = timed(dualpipe(pp, micro_batches), pair=3.0)
    assert set(unpaired.idle_per_rank) == {(pp / 2 - 1) * (3 + 2 - 3)}


def test_latency_delays_every_hop():
    timeline = timed(of_text("0F0,0B0\n1F0,1B0\n"), latency=0.25)
    assert [(s.start, s.end) for s in timeline.spans[0]] == [(0, 1), (4.5, 6.5)]
    assert [(s.start, s.end) for s in timeline.spans[1]] == [(1.25, 2.25), (2.25, 4.25)]
    assert timeline.makespan == 6.5
    assert timeline.idle_per_rank == (3.5, 3.5)
    assert timeline.idle_fraction == 7 / 13


def test_messages_queue_on_an_occupied_link():
    """Three forwards of 1 each; a message occupies the link for 2, so they arrive at 3, 5 and 7."""
    text = "0F0,0F1,0F2,0B0,0B1,0B2\n1F0,1F1,1F2,1B0,1B1,1B2\n"
    timeline = timed(of_text(text), occupancy=2.0, latency=0.5)
    assert [s.start for s in timeline.spans[1]][:3] == [3.5, 5.5, 7.5]


def test_the_fold_of_a_v_is_free():
    """Stages 1 and 2 share rank 1: no message between them."""
    text = "0F0,3F0,3B0,0B0\n1F0,2F0,2B0,1B0\n"
    timeline = timed(of_text(text), latency=1.0)
    assert [s.start for s in timeline.spans[1]] == [1.5, 2.0, 6.0, 7.0]


def test_a_pair_delivers_both_results_at_its_end():
    text = "0F0,0F1,(0F2;0B0)OVERLAP_F_B,0B1,0B2\n1F0,1B0,1F1,1B1,1F2,1B2\n"
    timeline = timed(of_text(text))
    assert timeline.spans[0][2].start == 4.0
    assert timeline.spans[0][2].end == 6.5
    assert timeline.spans[1][4].start == 7.0  # 1F2, after 1B1 of 5..7 and 0F2 of 6.5


def test_activations_are_released_by_b_or_by_w():
    assert timed(of_text("0F0,0B0,0F1,0B1\n")).peak_activations == (1,)
    assert timed(of_text("0F0,0I0,0F1,0W0,0I1,0W1\n")).peak_activations == (2,)
    assert timed(of_text("0F0,0F1,(0F2;0B0)OVERLAP_F_B,0B1,0B2\n")).peak_activations == (3,)


def test_uneven_stages_take_their_own_time():
    costs = StageCosts(
        forward=(1.0, 3.0),
        input=(1.0, 2.0),
        weight=(0.5, 1.0),
        hidden=(0.5, 0.25),
        activation=(1.0, 0.25),
    )
    timeline = simulate(of_text("0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n"), costs)
    assert [(s.start, s.end) for s in timeline.spans[1]] == [(1, 4), (4, 7), (7, 10), (10, 13)]
    assert timeline.makespan == 14.5
    assert timeline.peak_activations == (2.0, 0.25)
    assert costs.saved(0, 1) == 0.25


def test_sizes_of_stages_scale_costs():
    costs = sized_stages(Costs(), [0.5, 1.5], hidden=[2.0, 0.0])
    assert costs.forward == (0.5, 1.5)
    assert costs.hidden == (0.5, 0.0)  # a pair is no shorter than its longer half
    assert costs.activation == (0.5, 1.5)


@pytest.mark.parametrize(
    "costs",
    [{"forward": 0.0}, {"pair": 3.5}, {"pair": 1.5}, {"latency": -1.0}, {"weight": -1.0}],
)
def test_impossible_costs_are_refused(costs):
    with pytest.raises(UserError, match="cost"):
        Costs(**costs)


def test_the_summary_has_the_documented_keys():
    summary = timed(dualpipe_v(4, 10)).summary()
    assert list(summary) == [
        "schedule",
        "pp",
        "micro_batches",
        "makespan",
        "idle_fraction",
        "idle_per_rank",
        "peak_activations",
        "stages",
    ]
    assert (summary["pp"], summary["micro_batches"], summary["stages"]) == (4, 10, 8)
    assert sum(summary["idle_per_rank"]) / 4 / summary["makespan"] == summary["idle_fraction"]
