"""The benchmark of the training step: all contenders run, and compute the same loss."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "train_step.py"


def test_every_contender_takes_a_step():
    size = ["--repeats", "1", "--width", "1", "--threads", "1", "--length", "8"]
    printed = subprocess.run(
        [sys.executable, str(SCRIPT), *size], capture_output=True, text=True, check=True
    ).stdout
    seconds = json.loads(printed.splitlines()[-1])["median_seconds"]
    assert seconds.keys() == {
        "dsv3_plugin", "upstream local", "transformers grouped_mm", "transformers eager",
    }  # fmt: skip
