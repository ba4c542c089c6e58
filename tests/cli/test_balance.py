"""`dsv3 balance`, and `dsv3 load`, its hidden other name."""

import json
import subprocess
import sys

import pytest

from dsv3_plugin.report.balance import LoadHistory, load_mapping
from tests.report.test_balance import record


def test_as_json_it_is_what_the_report_has(dsv3, tmp_path):
    records = [record(step) for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in records))
    said = dsv3("balance", tmp_path, "--json")
    assert said.code == 0
    assert json.loads(said.out) == json.loads(
        json.dumps(load_mapping(LoadHistory(iter(records), tmp_path)))
    )


@pytest.mark.parametrize("verb", ["balance", "load"])
def test_the_verb_draws(verb, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    lines = [json.dumps(record(step)) for step in range(1, 20)]
    lines.insert(3, json.dumps({"iteration": 3, "validation_loss": 1.0}))
    (run / "metrics.jsonl").write_text("\n".join(lines) + '\n{"iterat')
    png = tmp_path / "balance.png"
    command = [sys.executable, "-m", "dsv3_plugin.cli", verb, str(run), "--png", str(png)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "step 19" in done.stdout
    assert png.read_bytes().startswith(b"\x89PNG")

    (tmp_path / "empty").mkdir()
    command[4] = str(tmp_path / "empty")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no expert load" in done.stderr
    assert "Traceback" not in done.stderr
