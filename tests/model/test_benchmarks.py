"""The benchmark of the training step: all contenders run, and compute the same loss."""

import json
from pathlib import Path

from tests.forked_programs import printed_by

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "train_step.py"


def test_every_contender_takes_a_step():
    size = ["--repeats", "1", "--width", "1", "--threads", "1", "--length", "8"]
    seconds = json.loads(printed_by(SCRIPT, *size).splitlines()[-1])["median_seconds"]
    assert seconds.keys() == {
        "dsv3_plugin", "upstream local", "transformers grouped_mm", "transformers eager",
    }  # fmt: skip
