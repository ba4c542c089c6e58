"""`dsv3 balance`, and `dsv3 load`, its hidden other name."""

import json
import subprocess
import sys

import pytest

from tests.report.test_balance import record


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

    command[4] = str(tmp_path / "nowhere")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no expert load" in done.stderr
    assert "Traceback" not in done.stderr
