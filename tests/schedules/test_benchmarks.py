"""The table of schedules, at a size that takes a moment."""

import json
from pathlib import Path

from tests.forked_programs import printed_by

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "schedule_table.py"


def test_the_table_has_every_schedule_and_none_beats_the_bound():
    size = ["--pp", "4", "--micro-batches", "8", "--effort", "0.02"]
    table = json.loads(printed_by(SCRIPT, *size).splitlines()[-1])
    makespans = {row["schedule"]: row["makespan"] for row in table["rows"]}
    assert {"1f1b", "zb1p", "zbv", "dualpipe", "dualpipe_v"} < makespans.keys()
    assert table["lower_bound"] <= makespans["search"] <= makespans["dualpipe_v"]
    assert makespans["search"] < makespans["1f1b"]
