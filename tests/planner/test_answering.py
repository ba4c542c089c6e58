"""What a round of answers costs, against the engine's own arithmetic and by hand."""

import pytest
import torch

from dsv3_plugin.inference.batch import POSITIONS_AT_ONCE
from dsv3_plugin.inference.cache import CacheShape
from dsv3_plugin.inference.pages import PAGE_TOKENS
from dsv3_plugin.planner.answering import PAGE, READ_AT_ONCE
from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.planner.journal import Kept
from dsv3_plugin.planner.make import make_plan
from dsv3_plugin.planner.memory.answering import cache, engine_works_with
from dsv3_plugin.planner.resolve import load_resolved
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.stages import Stage
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.report.plan import sentences


@pytest.fixture(scope="module")
def planned():
    cluster = load_cluster("h800")
    recipe = load_resolved("rl/deepseek-v3", (), cluster.machine)
    plan = make_plan(recipe, cluster, cluster.machine)
    return plan, Setting.of(recipe, cluster, cluster.machine)


def test_the_cache_is_the_engines(planned):
    """32 answers of 4,096 tokens, and two guesses, of layers that the rank has."""
    _, setting = planned
    assert (PAGE, READ_AT_ONCE) == (PAGE_TOKENS, POSITIONS_AT_ONCE)
    for stages, layers in (((Stage(moe=2), Stage(moe=2)), 4), ((Stage(dense=1), Stage(mtp=1)), 2)):
        shape = CacheShape(layers, 512, 64, torch.bfloat16)
        assert cache(setting, setting.answering, stages) == shape.bytes_for([4096 + 2] * 32)


def test_answers_are_a_moment_of_each_rank_and_a_part_of_each_step(planned):
    plan, setting = planned
    (phase,) = plan.phases
    for rank in phase.ranks:
        states = sum(rank.memory_bytes[part] for part in ("weights", "gradients", "optimizer"))
        held = rank.moments["answering"] - states - rank.memory_bytes["allocator"]
        assert held > cache(setting, setting.answering, rank.stages)
        assert rank.moments["answering"] < rank.moments["step"]
    assert sum(phase.time_by_part.values()) == pytest.approx(phase.step_seconds)
    assert phase.time_by_part["answering"] == plan.round.seconds


def test_a_round_takes_as_long_as_its_weights_and_latents_are_read(planned):
    """Of 32 answers on 32 ranks each expert has tokens: all weights but the embedding's, half of
    the latents, 3,072 / 2 times."""
    plan, _ = planned
    cluster = plan.cluster
    counts = {layer.kind: layer for layer in plan.parameters.layers}
    experts = counts["moe"].parameters["experts"]
    read = 0.0
    for kind, layer in counts.items():
        routed = layer.parameters.get("experts", experts if kind == "mtp" else 0)
        # Routers' biases, and the embedding and head that MTP has in a checkpoint, are not read.
        held = layer.held if kind != "embedding" else 0
        read += layer.number * (held - routed + routed / 32) * 2
    latents = (61 + 1) * 576 * 2 * 65 * PAGE * 32 / 2
    rate = cluster.memory_gb_per_second * 1e9 * cluster.efficiency.memory.value
    assert plan.round.seconds == pytest.approx(1536 * (read + latents) / rate, rel=0.01)


def test_a_round_that_goes_on_with_answers_makes_a_part_of_them(planned):
    """A third of the longest takes a third of the time; keys and values of a whole text of 4,096
    tokens are made again, 128 heads of 128 + 128 and 192 numbers of two bytes."""
    whole, setting = planned
    recipe = load_resolved("rl/deepseek-v3", ("rollouts.partial=1024",), whole.cluster.machine)
    plan = make_plan(recipe, whole.cluster, whole.cluster.machine)
    assert plan.round.seconds == pytest.approx(whole.round.seconds / 3)
    assert "3,072 tokens, of which a round makes 1,024, 32 at" in sentences.answering(plan)[0]
    assert "of which" not in sentences.answering(whole)[0]
    cluster, stages = whole.cluster, (Stage(moe=2),)
    again = Setting.of(recipe, cluster, cluster.machine)
    before, now = (engine_works_with(one, one.answering, stages) for one in (setting, again))
    heads = 4096 * 128 * (256 + 192) * 2
    assert before < heads < now < 1.2 * heads


def test_answers_on_the_disk_are_said_whoever_makes_them():
    """16 bytes of a token of an answer and its text's 4, and 4 of a prompt's."""
    cluster = load_cluster("h800")
    elsewhere = (
        "rollouts.kind=openai",
        "rollouts.url=http://127.0.0.1:8000",
        "rollouts.drafts=0",
    )
    recipe = load_resolved("rl/deepseek-v3", elsewhere, cluster.machine)
    plan = make_plan(recipe, cluster, cluster.machine)
    assert plan.round is None
    assert plan.kept == Kept(1024 * (3072 * 20 + 1024 * 4), 50)
    assert sentences.answering(plan) == [
        "answers of a round take 67.1 MB of the run's folder at the most (rollouts/), 3.4 GB of "
        "the 50 between two checkpoints"
    ]
    overrides = ("grpo.routing_replay=true", "checkpoint.interval=1")
    replayed = Kept.of(load_recipe("rl/deepseek-r1-zero", overrides))
    assert replayed.bytes == 8192 * (32768 * 20 + 1024 * 4 + 33791 * 58 * 8)
    assert replayed.rounds == 1
    in_parts = ("rollouts.partial=4096", "rollouts.dynamic_sampling=2", "checkpoint.interval=1")
    begun = Kept.of(load_recipe("rl/deepseek-r1-zero", in_parts))
    assert begun.bytes == 3 * 8192 * (32768 * 20 + 1024 * 4)


def test_a_stage_without_answers_has_none():
    cluster = load_cluster("h800")
    recipe = load_resolved("sft/deepseek-v3", (), cluster.machine)
    plan = make_plan(recipe, cluster, cluster.machine)
    assert plan.round is None
    assert plan.kept is None
    assert "answering" not in plan.phases[0].ranks[0].moments
