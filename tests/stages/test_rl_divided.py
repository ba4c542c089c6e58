"""A model that ranks have together learns what the whole one does: the same answers, the same
gradients, the same numbers, also where a run is killed within a round."""

import signal
from pathlib import Path

import pytest
import torch

from dsv3_plugin.checkpoint.formats.dist_reader import DistCheckpoint
from dsv3_plugin.files.run_folder import RunFolder
from tests.small_runs import Command, Trained, records
from tests.stages.test_rl import written

pytestmark = pytest.mark.long

STEPS = 4
SAME = 1e-6
"""Of losses, in nats, and of gradients beside the largest of all."""
_MOMENTUM = "optimizer.state.exp_avg."
"""After one step 1 − β₁ of the gradient, clipped."""


@pytest.fixture(scope="module")
def recipe_of_two(recipe: Path, trained: Trained) -> Path:
    return written(recipe.parent, trained.folder)


@pytest.fixture(scope="module")
def alone(recipe_of_two: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    ended = Command.forked(*words_of(recipe_of_two, folder), "parallel.processes=1").end()
    assert ended.code == 0, ended.output
    return folder


def words_of(recipe: Path, folder: Path) -> tuple[str | Path, ...]:
    return (
        "train", recipe, f"directory={folder}", f"training.steps={STEPS}", "rollouts.drafts=1",
        "checkpoint.keep=null", "grpo.routing_replay=true",
    )  # fmt: skip


def gradients(run: Path) -> dict[str, torch.Tensor]:
    """Of the first step, whole."""
    stored = DistCheckpoint(run / "checkpoints" / "iter_0000001")
    shapes = {
        key: tensor.shape
        for key, tensor in stored.contents.tensors.items()
        if key.startswith(_MOMENTUM)
    }
    return {key: stored.read(key, (0,) * len(shape), shape) for key, shape in shapes.items()}


@pytest.mark.parametrize(
    "division",
    [
        ["parallel.expert=2"],
        ["parallel.pipeline=2"],
        ["parallel.pipeline=2", "pipeline.schedule=zb1p", "training.micro_batch_size=1"],
    ],
    ids=["experts", "1f1b by upstream", "zb1p by ours"],
)
def test_its_numbers_are_those_of_one_rank(
    recipe_of_two: Path, alone: Path, tmp_path: Path, division: list[str]
) -> None:
    run = tmp_path / "run"
    words = (*words_of(recipe_of_two, run), *division)
    killed = len(division) == 1  # one with experts divided, one whose first stage has none
    if killed:
        started = Command.forked(*words).when(lambda: RunFolder(run).steps_saved() >= 1)
        assert started.send(signal.SIGKILL).end().code == -signal.SIGKILL
    ended = Command.forked(*words).end()
    assert ended.code == 0, ended.output
    assert ("Going on from step " in ended.output) == killed

    expected, found = gradients(alone), gradients(run)
    assert expected.keys() == found.keys()
    asked = next(line for line in records(alone) if "rl/groups_told_apart" in line)
    assert asked["rl/groups_told_apart"] == 1  # else there would be little to compare
    assert asked["rl/advantage_std"] > 0.5
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=0, atol=SAME * largest, msg=key)
    assert largest > 1e-3

    ours, theirs = ({line["iteration"]: line for line in records(f)} for f in (run, alone))
    assert ours.keys() == theirs.keys()
    for step, line in theirs.items():
        assert ours[step].keys() == line.keys()
        # Later steps are Adam's, who makes a whole step of the sign of what is next to nothing.
        tolerance = SAME if step <= 1 else 1e-4
        for name, value in line.items():
            if name.startswith("rl/") and "second" not in name and "mismatch" not in name:
                near = pytest.approx(value, rel=tolerance, abs=tolerance)
                assert ours[step][name] == near, (step, name)
    rounds = [line["rl/mismatch_max"] for line in ours.values() if "rl/mismatch_max" in line]
    assert len(rounds) == 2
    assert max(rounds) <= 1e-5
