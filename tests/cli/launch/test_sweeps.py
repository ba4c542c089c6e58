"""`dsv3 launch --array`: a run for each value, and all of them looked at first."""

from pathlib import Path

import pytest

from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch import submit
from dsv3_plugin.launch.job_record import record_of
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.rehearsal.quick import refuse_what_upstream_would
from tests.launch.jobs import LAUNCH


def test_a_sweep_has_a_run_for_each_value(dsv3, sbatch):
    said = dsv3(*LAUNCH, "--array", "training.seed=1,2,3", "directory=runs/sweep")
    assert said.code == 0, said.err
    assert said.out.splitlines()[2].startswith("Job 12_2: tiny in runs/sweep/seed-3; ")
    waits = "PENDING|Priority|0|1:00:00||"
    sbatch(queue="\n".join(f"{job}|{waits}" for job in ("12", "12_0", "12_1", "12_2")))
    again = record_of(RunFolder(Path("runs/sweep/seed-2"))).command
    assert again.startswith("dsv3 launch pretrain/tiny --cluster two.yaml directory=runs/sweep ")
    assert again.endswith(" training.seed=2 directory=runs/sweep/seed-2")
    assert len(dsv3("status", "runs/sweep").out.splitlines()) == 1 + 3
    for number, seed in enumerate((1, 2, 3)):
        folder = Path(f"runs/sweep/seed-{seed}")
        kept = load_recipe(folder / "launch" / "recipe.yaml")
        assert (kept.training.seed, kept.folder) == (seed, folder)
        assert f"12_{number}" in dsv3("status", folder).out
    assert "#SBATCH --array=0-2" in Path("runs/sweep/launch/sweep.sbatch").read_text()
    assert len(dsv3("status").out.splitlines()) == 1 + 3
    sbatch()
    # A run in the folder that holds them is one more, and has its script still.
    assert dsv3(*LAUNCH, "directory=runs/sweep").code == 0
    sbatch(queue="\n".join(f"{job}|{waits}" for job in ("12", "12_0", "12_1", "12_2")))
    assert len(dsv3("status").out.splitlines()) == 1 + 4
    assert Path("runs/sweep/launch/sweep.sbatch").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("curves.batch_size=16,7",), "the run with curves.batch_size=7: "),
        (("training.micro_batch_size=1,4000",), "the run with training.micro_batch_size=4000: "),
        (("parallel.processes=2,1", "parallel.expert=1"), "takes 2 ranks on 1 node (CPUs) for"),
        (("training.seed=1,2", "checkpoint.directory=all"), "would all keep their checkpoints in"),
    ],
)  # fmt: skip
def test_every_value_of_a_sweep_is_looked_at_before_anything_is_queued(
    dsv3, sbatch, tmp_path, words, sentence
):
    sbatch(f"touch {tmp_path}/queued; echo 12")
    values, *overrides = words
    said = dsv3(*LAUNCH, "--array", values, *overrides)
    assert (said.code, said.out) == (2, "")
    assert sentence in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["two.yaml"]


def test_every_value_of_a_sweep_is_rehearsed(dsv3, monkeypatch):
    seen = []
    monkeypatch.setattr(
        submit, "refuse_what_upstream_would", lambda _, words, recipe, *more: seen.append(words[-2])
    )
    assert dsv3(*LAUNCH, "--array", "training.seed=1,2,3", "--dry-run").code == 0
    assert seen == ["training.seed=1", "training.seed=2", "training.seed=3"]


@pytest.mark.usefixtures("forked_rehearsals")
def test_what_upstream_refuses_is_refused_before_anything_is_queued(
    dsv3, sbatch, tmp_path, monkeypatch
):
    """With the real rehearsal, once: the second value of a sweep is what Megatron will not take."""
    monkeypatch.setattr(submit, "refuse_what_upstream_would", refuse_what_upstream_would)
    sbatch(f"touch {tmp_path}/queued; echo 12")
    said = dsv3(*LAUNCH, "--array", "megatron_args.exit-interval=9000,never")
    assert (said.code, said.out) == (2, "")
    assert (
        "the run with megatron_args.exit-interval=never: Megatron refuses these settings"
        in said.err
    )
    assert [path.name for path in tmp_path.iterdir()] == ["two.yaml"]
