"""Without TE's Python a run is configured all the same; a step says how to get it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dsv3_plugin.rehearsal.report import Depth
from dsv3_plugin.rehearsal.te.installed import how_to_get_it


def said(depth: Depth, scratch: Path) -> list[str]:
    program = Path(__file__).with_name("without_te.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(program), depth, str(scratch)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
def test_upstream_configures_the_full_model_by_names_alone(tmp_path: Path):
    assert said("configuration", tmp_path) == []


def test_a_step_says_how_to_get_it(tmp_path: Path):
    assert said("step", tmp_path) == [how_to_get_it().removesuffix(".")]
