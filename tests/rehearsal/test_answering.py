"""Reinforcement learning in a rehearsal: an engine at its budget, a step on packs of answers."""

import json
from collections.abc import Callable

import pytest

from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.planner.make import make_plan
from dsv3_plugin.planner.resolve import load_resolved
from dsv3_plugin.rehearsal.report import Request
from tests.conftest import Said
from tests.rehearsal import forked_child

RECIPE = """
base: pretrain/tiny
stage: rl
from: runs/tuned
data: {corpus: prompts.jsonl, tokenizer: parent, packing: prompts, seq_length: 64,
  fim_rate: 0.0, held_out: 0.0}
training: {steps: 100, eval_interval: null, micro_batch_size: 1}
curves: {learning_rate: 1e-4, batch_size: 16, router_bias_speed: 0, mtp_weight: 0.1}
rollouts: {prompts: 16, n: 2, max_prompt_tokens: 8, max_tokens: 24}
grpo: {kl_weight: 0.001, mini_batches: 2}
parallel: {processes: 4, expert: 2, pipeline: 2}
pipeline: {executor: ours, schedule: 1f1b_v}
"""


def test_a_rank_answers_gives_its_cache_back_and_takes_its_step(tmp_path) -> None:
    """No weight is handed over; what the engine remembers is as planned, to the byte."""
    path = tmp_path / "rl.yaml"
    path.write_text(RECIPE)
    reports = forked_child.reports([Request(str(path), (), "cpu", rank, 4) for rank in (0, 2)])
    cluster = load_cluster("cpu").model_copy(update={"gpus": 4})
    recipe = load_resolved(str(path), (), cluster.machine)
    plan = make_plan(recipe, cluster, cluster.machine)
    for report, planned in zip(reports, plan.phases[0].ranks, strict=True):
        assert report.findings == ()
        assert report.without_gradient == report.overwritten == ()
        engine = report.answered
        layers = sum(stage.decoder_layers for stage in planned.stages)
        assert engine.memory["cache"] == layers * (64 + 16) * 4 * 64 * 16
        assert engine.handed_over == 0
        assert engine.left < 0.01 * sum(report.states.values())
        assert "cache" not in report.states


@pytest.mark.long
def test_a_rank_of_the_full_recipe_answers_and_takes_its_step_as_planned(
    dsv3: Callable[..., Said],
) -> None:
    """The one with embedding and head; the engine remembers of a dense layer and of multi-token
    prediction, and its cache has gone when the step begins."""
    said = dsv3("rehearse", "rl/deepseek-v3", "--ranks", "0", "--json")
    assert said.code == 0, said.out + said.err
    found = json.loads(said.out)
    assert found["would_run"]
    (rank,) = found["ranks"]
    engine = rank["answered"]
    # 32 answers at once of up to 4,096 tokens with their prompts, and a page for guesses; latents
    # and rotated keys, in BF16.
    assert engine["memory"]["cache"] == 2 * 32 * 65 * 64 * (512 + 64) * 2
    assert engine["handed_over"] == 0
    assert engine["left"] < 0.01 * sum(rank["states"].values())
    assert "cache" not in rank["states"]
    for part in ("weights", "gradients", "optimizer", "logits"):
        assert rank["memory"][part] == pytest.approx(rank["planned"][part], rel=0.01), part
    assert sum(rank["memory"].values()) <= sum(rank["planned"].values()) <= rank["card"] - 5e9
