"""Without TE's Python a run is configured all the same; a step says how to get it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dsv3_plugin.rehearsal.te.installed import how_to_get_it


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    program = Path(__file__).with_name("without_te.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(program), str(tmp_path_factory.mktemp("scratch"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_upstream_configures_the_full_model_by_names_alone(said: dict[str, list[str]]):
    assert said["configuration"] == []


def test_a_step_says_how_to_get_it(said: dict[str, list[str]]):
    assert said["step"] == [how_to_get_it()]
