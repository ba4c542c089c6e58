"""Sequences divided over ranks, under every schedule: the same step as in one process.

The oracle, the weights and the tolerances are those of test_executor.py; here each pipeline is two
ranks wide, and two of them share every sequence.
"""

from pathlib import Path

from dsv3_plugin.schedules.dualpipe import dualpipe
from dsv3_plugin.schedules.dualpipe_v import dualpipe_v
from dsv3_plugin.schedules.interleaved import interleaved
from dsv3_plugin.schedules.one_f_one_b import one_f_one_b
from dsv3_plugin.schedules.search.search import search
from dsv3_plugin.schedules.zb1p import zb1p
from dsv3_plugin.schedules.zbv import zbv
from tests.gloo_ranks import run_ranks
from tests.pipeline.executed import all_schedules, must_be_of_one_process, references
from tests.schedules.search.problems import even

SCHEDULES = [
    one_f_one_b(2, 3),
    zb1p(2, 3),
    interleaved(2, 4, 2),
    zbv(2, 4),
    dualpipe(2, 4),
    dualpipe_v(2, 4),
    search(2, 3, even(2), effort=0.002).schedule,
]


def test_every_loss_gradient_and_bias_is_that_of_one_process(tmp_path: Path) -> None:
    [reference] = run_ranks(1, references, SCHEDULES, scratch=tmp_path)
    answers = run_ranks(4, all_schedules, SCHEDULES, 2, scratch=tmp_path, timeout_s=240)
    must_be_of_one_process(SCHEDULES, reference, answers, losses=1e-6, gradients=1e-5)
