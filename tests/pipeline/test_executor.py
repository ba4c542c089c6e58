"""The executor on real model chunks: loss, gradients and routers' biases under every schedule.

The oracle is upstream: `forward_backward_no_pipelining` on the whole model in one process, from the
same weights and batches. FP32; gradients to 1e-5 of the largest of their tensor, because the sums
over micro-batches run in another order.
"""

import contextlib
from typing import Any

import pytest

from dsv3_plugin.schedules.costs import Costs, even_stages
from dsv3_plugin.schedules.dualpipe import dualpipe
from dsv3_plugin.schedules.dualpipe_v import dualpipe_v
from dsv3_plugin.schedules.interleaved import interleaved
from dsv3_plugin.schedules.one_f_one_b import one_f_one_b
from dsv3_plugin.schedules.one_f_one_b_v import one_f_one_b_v
from dsv3_plugin.schedules.simulate import simulate
from dsv3_plugin.schedules.zb1p import zb1p
from dsv3_plugin.schedules.zbv import zbv
from tests.gloo_ranks import run_ranks
from tests.pipeline.executed import all_schedules, must_be_of_one_process, references

SCHEDULES = {
    2: [
        one_f_one_b(2, 4),
        zb1p(2, 5),
        one_f_one_b_v(2, 4),
        interleaved(2, 4, 2),
        zbv(2, 4),
        dualpipe(2, 6),
        dualpipe_v(2, 5),
    ],
    4: [dualpipe(4, 8), dualpipe_v(4, 9), zbv(4, 8)],
}


def test_an_executor_is_in_use_inside_its_context_alone() -> None:
    from dsv3_plugin.pipeline.executor import Executor, choose_executor

    one, other = (Executor(lambda _: one_f_one_b(2, 4)) for _ in range(2))
    get = choose_executor(lambda: "upstream's")
    with one.in_use():
        with contextlib.suppress(ValueError), other.in_use():
            assert get() is other
            raise ValueError
        assert get() is one
    assert get() == "upstream's"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The step in one process, by micro-batches."""
    every = [schedule for schedules in SCHEDULES.values() for schedule in schedules]
    [answer] = run_ranks(1, references, every, scratch=tmp_path_factory.mktemp("one"))
    return answer


@pytest.fixture(scope="module", params=[2, 4])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(schedules, answers of every rank) for a number of ranks; one start of processes for all."""
    scratch = tmp_path_factory.mktemp(f"pipeline{request.param}")
    schedules = SCHEDULES[request.param]
    return schedules, run_ranks(
        request.param, all_schedules, schedules, scratch=scratch, timeout_s=240
    )


def test_every_loss_gradient_and_bias_is_that_of_one_process(runs: Any, reference: Any) -> None:
    schedules, ranks = runs
    must_be_of_one_process(schedules, reference, ranks, losses=1e-6, gradients=1e-5)


def test_the_peak_of_live_micro_batches_is_the_simulators(runs: Any) -> None:
    schedules, ranks = runs
    for index, schedule in enumerate(schedules):
        simulated = simulate(schedule, even_stages(schedule, Costs())).peak_activations
        share = 1 if schedule.name == "dualpipe" else schedule.num_stages // schedule.pp
        measured = [answers[index][2] / share for answers in ranks]
        assert measured == pytest.approx(simulated), schedule.name


def test_an_evaluation_runs_under_every_schedule(runs: Any) -> None:
    schedules, ranks = runs
    for index, schedule in enumerate(schedules):
        evaluations = [answers[index][3] for answers in ranks]
        assert len(evaluations[0]) == 3
        assert all(evaluation == evaluations[0] for evaluation in evaluations), schedule.name
