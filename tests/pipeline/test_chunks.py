"""Chunks where a placement puts them, in the run's own precision."""

import json
from pathlib import Path

import pytest

from tests.gloo_ranks import run_ranks
from tests.training import trainer_ranks


@pytest.fixture(scope="module")
def losses(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """Losses of two steps in BF16 on two ranks, by schedule."""

    def trained(schedule: str) -> list[float]:
        folder = tmp_path_factory.mktemp(schedule)
        overrides = [
            "model=tiny",
            f"directory={folder}/run",
            f"data.path={recipe.parent}/data",
            "parallel.processes=2",
            "parallel.expert=1",
            "parallel.pipeline=2",
            f"pipeline.schedule={schedule}",
            "precision.dtype=bf16",
            "training.micro_batch_size=1",
            "curves.batch_size=4",
            "training.steps=2",
            "training.eval_interval=null",
        ]
        run_ranks(2, trainer_ranks.train, recipe, overrides, scratch=folder)
        lines = map(json.loads, (folder / "run" / "metrics.jsonl").open())
        return [line["loss"] for line in lines if "loss" in line]

    return {schedule: trained(schedule) for schedule in ("1f1b", "zbv")}


def test_hidden_states_travel_in_bf16_wherever_the_last_stage_lies(
    losses: dict[str, list[float]],
) -> None:
    # In V's placement upstream's last chunk is one in the middle of the model: its output, raised
    # to FP32, would be read as BF16 by the next.
    assert len(losses["zbv"]) == 2
    assert losses["zbv"] == pytest.approx(losses["1f1b"], rel=2e-3)  # BF16 sums in another order
