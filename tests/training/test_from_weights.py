"""A run that begins with weights that were imported: step 0 knows what they know."""

from pathlib import Path

import pytest

from dsv3_plugin.checkpoint import export_hf, import_hf
from tests.small_runs import STEPS, Command, records


def test_imported_weights_are_where_a_new_run_begins(trained, tmp_path):
    export_hf(trained.checkpoints, tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "run" / "checkpoints")
    ended = Command.forked(
        "train", trained.recipe, f"directory={tmp_path}/run", f"data.path={trained.data}",
        "training.steps=1", "training.eval_interval=1",
    ).end()  # fmt: skip
    assert ended.code == 0, ended.output
    # Each evaluation reads the next held-out batches, so equal weights have like losses, not equal.
    began, ended = _held_out(tmp_path / "run")[0], _held_out(trained.folder)[STEPS]
    assert began == pytest.approx(ended, rel=0.02)
    assert began < _held_out(trained.folder)[0] - 0.5
    steps = [line["iteration"] for line in records(tmp_path / "run") if "loss" in line]
    assert steps == [1]


def _held_out(folder: Path) -> dict[int, float]:
    return {
        line["iteration"]: line["validation_loss"]
        for line in records(folder)
        if "validation_loss" in line
    }
