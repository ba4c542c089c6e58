"""Gradients are reduced while others are computed, to the same bits as at the end."""

from pathlib import Path
from typing import Any

import pytest

from tests.gloo_ranks import run_ranks
from tests.small_runs import numbers
from tests.training import trainer_ranks


def train_watched(rank: int, recipe: Path, overrides: list[str], overlap: bool) -> list[str]:
    """Train; what this rank did in the last step, of computing and of reducing."""
    from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBucketGroup

    from dsv3_plugin.pipeline import executor
    from dsv3_plugin.pipeline.rank_step import RankStep

    done: list[str] = []
    compute, run, start = RankStep._compute, RankStep.run, _ParamAndGradBucketGroup.start_grad_sync

    def watched_run(step: RankStep, *arguments: Any) -> None:
        if not step._only_forward:
            done.clear()
        run(step, *arguments)

    def watched_compute(step: RankStep, action: Any) -> None:
        compute(step, action)
        done.append("compute")

    def watched_start(group: Any, force_all_reduce: bool | None = False) -> None:
        if group.grad_reduce_handle is None:  # else it has begun, and this is the end
            done.append("reduce")
        start(group, force_all_reduce)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RankStep, "run", watched_run)
        patch.setattr(RankStep, "_compute", watched_compute)
        patch.setattr(_ParamAndGradBucketGroup, "start_grad_sync", watched_start)
        if not overlap:
            patch.setattr(executor, "reductions", lambda *_: None)
        trainer_ranks.train(rank, recipe, overrides)
    return done


@pytest.mark.parametrize("zero1", ["true", "false"])
def test_a_chunks_gradients_are_reduced_once_they_are_whole(recipe, tmp_path, zero1):
    same = [
        "parallel={processes: 4, pipeline: 2, expert: 2}", "pipeline.schedule=dualpipe_v",
        "pipeline.layout=E|t|t|mL", "curves.batch_size=16", "training.steps=3",
        "training.eval_interval=null", f"parallel.zero1={zero1}", f"data.path={tmp_path}/data",
        "checkpoint.interval=100",
    ]  # fmt: skip
    answers = {}
    for overlap in (False, True):
        ranks = tmp_path / f"ranks {overlap}"
        ranks.mkdir()
        overrides = [*same, f"directory={tmp_path}/{overlap}"]
        answers[overlap] = run_ranks(4, train_watched, recipe, overrides, overlap, scratch=ranks)
    for at_the_end, beside in zip(answers[False], answers[True], strict=True):
        assert sorted(at_the_end) == sorted(beside)
        last = len(at_the_end) - at_the_end[::-1].index("compute")
        assert "reduce" not in at_the_end[:last]
        assert "reduce" in beside[: len(beside) - 1 - beside[::-1].index("compute")]
    assert numbers(tmp_path / "True") == numbers(tmp_path / "False") != []
