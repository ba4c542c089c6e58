"""The pipeline schedule, by its name or from a file."""

import pytest

from tests.recipe.piped import PIPED
from tests.recipe.refused import refusal


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["pipeline.schedule=dualpype"], "pipeline.schedule 'dualpype' is unknown"),
        (["pipeline.schedule=interleaved"], "needs pipeline.virtual_stages of 2 or more"),
        (["pipeline.virtual_stages=2"], "not to 1f1b: leave it out, or set"),
        (
            ["pipeline.executor=upstream", "pipeline.schedule=zbv"],
            "upstream runs 1f1b and interleaved, not zbv: set it to ours, or leave it out.",
        ),
        (
            ["parallel.pipeline=2", "pipeline.devices=4"],
            "pipeline.devices 4 and parallel.pipeline 2 are one number",
        ),
    ],
)
def test_schedules_that_cannot_be(overrides, sentence):
    assert sentence in refusal("pretrain/tiny", overrides)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["pipeline.schedule=dualpipe", "pipeline.devices=1"], "not 1: set pipeline.devices to 2."),
        (
            ["pipeline.schedule=dualpipe_v", "training.micro_batch_size=4"],
            "dualpipe_v on 2 devices needs 4 micro-batches, and the smallest batch gives 1",
        ),
        (
            ["pipeline.ramp_schedule=search"],
            "pipeline.ramp_schedule goes with our executor, and upstream runs 1f1b",
        ),
    ],
)  # fmt: skip
def test_schedules_that_a_pipeline_cannot_run(overrides, sentence):
    assert sentence in refusal("pretrain/tiny", [*PIPED, *overrides])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0F0,0B0\n1F0\n", "rank 1, slot 0: 1F0 has no backward"),
        ("0F0,0B0\n", "is of 1 rank, and the recipe has 2 pipeline devices: set pipeline.dev"),
        ("0F0,0B0\n1F0,1B0\n", "is of 1 micro-batch, and a batch of curves.batch_size gives 4"),
        ("0F0,2F0,2B0,0B0\n1F0,1B0\n", "Megatron builds as many on each: name another file"),
        ("0F0,0B0,2F1,2B1\n1F0,1B0,3F1,3B1\n", "that are not each other's mirror image"),
    ],
)
def test_a_schedules_file_is_proven_when_the_recipe_loads(text, sentence, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    overrides = [*PIPED, "curves.batch_size=8", f"pipeline.schedule={path}"]
    said = refusal("pretrain/tiny", overrides)
    assert str(path) in said
    assert sentence in said
