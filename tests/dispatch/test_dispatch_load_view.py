"""The load view: its numbers, its table, its picture, and the verb."""

import json
import random
import subprocess
import sys

import pytest

from dsv3_plugin.dispatch.load_view import load_table, max_violation, records_with_load
from dsv3_plugin.errors import UserError


def record(step: int) -> dict:
    """Two layers of 16 experts on 4 ranks of 2 nodes; the skew fades with the steps."""
    draw = random.Random(step)
    load = {
        layer: [
            int(100 + draw.random() * 400 / step + 900 * (expert == 3) / step)
            for expert in range(16)
        ]
        for layer in ("1", "2")
    }
    load["2"][7] = 0
    parts = {
        size: {
            layer: [sum(row[i : i + size]) for i in range(0, 16, size)]
            for layer, row in load.items()
        }
        for size in (4, 8)
    }
    return {
        "iteration": step,
        "expert_load": load,
        "rank_load": parts[4],
        "node_load": parts[8],
        "max_vio": {layer: max_violation(row) for layer, row in load.items()},
    }


def test_max_violation_is_the_excess_over_the_mean():
    assert max_violation([5, 5, 5, 5]) == 0
    assert max_violation([20, 0, 0, 0]) == 3
    assert max_violation([6, 4, 2]) == 0.5


def test_the_table_tells_the_last_step():
    text = load_table([record(1), record(10)])
    assert text.startswith("step 10:")
    layer_2 = text.splitlines()[-1].split()
    assert layer_2[0] == "2"
    assert float(layer_2[1]) == pytest.approx(record(10)["max_vio"]["2"], abs=1e-3)
    assert layer_2[-1] == "1"  # expert 7 is idle


def test_a_run_without_experts_is_said(tmp_path):
    with pytest.raises(UserError, match="no expert load"):
        records_with_load([{"iteration": 1, "loss": 2.0}], tmp_path)


def test_the_verb_draws(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    lines = [json.dumps(record(step)) for step in range(1, 20)]
    lines.insert(3, json.dumps({"iteration": 3, "validation_loss": 1.0}))
    (run / "metrics.jsonl").write_text("\n".join(lines) + '\n{"iterat')
    png = tmp_path / "load.png"
    command = [sys.executable, "-m", "dsv3_plugin.cli", "load", str(run), "--png", str(png)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "step 19" in done.stdout
    assert png.read_bytes().startswith(b"\x89PNG")

    command[4] = str(tmp_path / "nowhere")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no expert load" in done.stderr
    assert "Traceback" not in done.stderr
