"""Problems for the search: even stages, and all sorts for hypothesis."""

from hypothesis import strategies as st

from dsv3_plugin.schedules.actions import Schedule
from dsv3_plugin.schedules.costs import Costs, StageCosts, sized_stages
from dsv3_plugin.schedules.placement import stage_placement
from dsv3_plugin.schedules.search.problem import Problem


def even(pp: int, vp: int = 2, **costs: float) -> StageCosts:
    return sized_stages(Costs(**costs), [1 / vp] * (pp * vp))


def of_rows(rows) -> Schedule:
    return Schedule("rows", tuple(tuple(row) for row in rows))


@st.composite
def problems(draw) -> Problem:
    pp, vp = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    stages = pp * vp
    times = st.lists(st.integers(1, 6), min_size=stages, max_size=stages)
    forward, input_, weight = (draw(times) for _ in range(3))
    shares = draw(st.lists(st.sampled_from([0.0, 0.25, 0.5]), min_size=stages, max_size=stages))
    activation = draw(times)
    placement = stage_placement(pp, vp)
    costs = StageCosts(
        forward=tuple(map(float, forward)),
        input=tuple(map(float, input_)),
        weight=tuple(map(float, weight)),
        hidden=tuple(
            share * min(f, i) for share, f, i in zip(shares, forward, input_, strict=True)
        ),
        activation=tuple(map(float, activation)),
        latency=draw(st.sampled_from([0.0, 0.5])),
    )
    one = max(
        sum(a for a, rank in zip(activation, placement, strict=True) if rank == r)
        for r in range(pp)
    )
    limit = one * draw(st.sampled_from([1, 1.5, 3, 10]))
    return Problem(placement, draw(st.integers(1, 6)), costs, limit)
