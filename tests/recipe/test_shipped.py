"""The recipes of the package: what they say, and that it can be written and read again."""

import pytest

from dsv3_plugin.machine import Machine
from dsv3_plugin.planner.stage_costs import even_layers
from dsv3_plugin.recipe import yaml_text
from dsv3_plugin.recipe.continued import Continued
from dsv3_plugin.recipe.load import (
    load_recipe,
    shipped_folder,
)
from dsv3_plugin.recipe.stage_layout import expand
from dsv3_plugin.schedules.placement import stage_placement

RECIPES = sorted(
    path.relative_to(shipped_folder()).with_suffix("").as_posix()
    for path in shipped_folder().rglob("*.yaml")
    if path.parent.name != "models"
)


GPU_SERVER = Machine(gpus=8, transformer_engine=True)
BILLION, TRILLION = 10**9, 10**12


@pytest.mark.parametrize("name", RECIPES)
def test_complete_yaml_reads_back_as_the_same_recipe(name, tmp_path):
    recipe = load_recipe(name)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    again = load_recipe(tmp_path / "recipe.yaml")
    assert again == recipe
    assert again.to_yaml() == recipe.to_yaml()
    assert again.curves == recipe.curves


def test_no_recipe_has_the_folder_of_another():
    """Or a stage, typed as it is, would go on in the folder of the run that it begins with."""
    recipes = [load_recipe(name) for name in RECIPES]
    folders = [recipe.directory for recipe in recipes]
    assert len({*folders}) == len(folders)
    parents = {recipe.from_ for recipe in recipes if isinstance(recipe, Continued)}
    assert parents <= {*folders}


def test_deepseek_v3_is_the_report():
    recipe = load_recipe("pretrain/deepseek-v3")
    assert recipe.training.tokens == 14_800 * BILLION
    assert recipe.parallel.processes == 2048
    assert (recipe.parallel.pipeline, recipe.parallel.expert) == (16, 64)
    assert recipe.data_parallel == 128
    assert recipe.parallel.zero1
    # Batch: 3072 → 15360 over the first 469B tokens.
    batch = recipe.batch_schedule.batch
    assert batch(0) == 3072
    assert batch(469 * BILLION // 2) == pytest.approx((3072 + 15360) / 2, abs=128)
    assert batch(469 * BILLION - 10**9) < 15360
    assert batch(469 * BILLION + 4096) == batch(14 * TRILLION) == 15360
    # Learning rate: 2000 steps up, flat to 10T, cosine over 4.3T, 333B, 167B.
    rate = recipe.curves.learning_rate
    warm = recipe.batch_schedule.tokens_after(0, 2000)
    assert 2000 * 3072 * 4096 < warm < 2000 * 4096 * 4000
    assert rate.boundaries == [0, warm, 10 * TRILLION, 14_300 * BILLION, 14_633 * BILLION,
                               14_800 * BILLION]  # fmt: skip
    assert (rate(0), rate(warm), rate(10 * TRILLION)) == (0.0, 2.2e-4, 2.2e-4)
    assert rate(warm // 2) == pytest.approx(1.1e-4, rel=1e-6)
    assert rate(12_150 * BILLION) == pytest.approx((2.2e-4 + 2.2e-5) / 2)
    assert (rate(14_400 * BILLION), rate(14_700 * BILLION)) == (2.2e-5, 7.3e-6)
    gamma, weight = recipe.curves.router_bias_speed, recipe.curves.mtp_weight
    assert (gamma(0), gamma(14_300 * BILLION - 1), gamma(14_300 * BILLION)) == (1e-3, 1e-3, 0.0)
    assert (weight(0), weight(10 * TRILLION - 1), weight(10 * TRILLION)) == (0.3, 0.3, 0.1)
    # Pretraining knows no YaRN.
    assert recipe.model.rope_type == "rope"
    assert recipe.model.max_position_embeddings == recipe.data.seq_length == 4096
    assert recipe.data.fim_rate == 0.1
    assert recipe.precision.fp8.recipe == "blockwise"
    assert recipe.precision.moments == "bf16"
    assert {"norms", "mla_up_proj"} <= set(recipe.recompute)
    assert recipe.pipeline_stages == 32
    # The layout is the one that gives devices equal work.
    layers = [stage.count("t") for stage in expand(recipe.pipeline.layout).split("|")]
    assert layers == even_layers(recipe.model, stage_placement(16, 2))


@pytest.mark.parametrize(("phase", "length", "batch"), [("32k", 32, 1920), ("128k", 128, 480)])
def test_deepseek_v3s_extension_is_the_report(phase, length, batch):
    recipe = load_recipe(f"extend/deepseek-v3-{phase}")
    assert recipe.data.seq_length == length * 1024
    assert recipe.total_steps == 1000
    curves = recipe.curves
    for tokens in (0, recipe.total_tokens - 1):
        assert recipe.batch_schedule.batch(tokens) == batch
        assert curves.learning_rate(tokens) == 7.3e-6
        assert (curves.router_bias_speed(tokens), curves.mtp_weight(tokens)) == (0.0, 0.1)
    model = recipe.model
    assert (model.rope_type, model.rotary_scaling_factor) == ("yarn", 40)
    assert model.original_max_position_embeddings == 4096
    assert (model.beta_slow, model.beta_fast) == (1, 32)  # the report's α and β
    assert model.mscale == model.mscale_all_dim == 1  # √t = 0.1 ln s + 1, on queries and keys alike


def test_deepseek_v3s_fine_tuning_is_the_report():
    """Section 5.1: two epochs, cosine decay from 5e-6 to 1e-6."""
    recipe = load_recipe("sft/deepseek-v3")
    assert recipe.training.epochs == 2
    rate = recipe.curves.learning_rate
    assert rate(0) == 5e-6
    assert rate(recipe.total_tokens // 2) == pytest.approx(3e-6, rel=1e-3)
    assert rate(recipe.total_tokens) == pytest.approx(1e-6)
    assert recipe.stage == "sft"
    before = load_recipe("extend/deepseek-v3-128k")
    assert recipe.from_ == "runs/deepseek-v3-128k" == str(before.folder)


def test_deepseek_r1_zeros_learning_is_the_papers():
    """Section 2: 32 questions of 16 answers a step, 8,192 answers a round, 10,400 steps."""
    recipe = load_recipe("rl/deepseek-r1-zero")
    rollouts, grpo = recipe.rollouts, recipe.grpo
    assert recipe.total_steps == 10_400
    assert recipe.curves.learning_rate(0) == 3e-6
    assert (rollouts.n, rollouts.max_tokens) == (16, 32_768)
    assert (rollouts.prompts * rollouts.n, grpo.mini_batches, grpo.epochs) == (8192, 16, 1)
    assert rollouts.prompts // grpo.mini_batches == 32
    assert (grpo.kl_weight, grpo.reference_interval) == (0.001, 400)
    assert {"accuracy", "format"} <= {*recipe.rewards}
    assert {reward.weight for reward in recipe.rewards.values()} == {1.0}
    assert recipe.from_ == str(load_recipe("extend/deepseek-v3-128k").folder)


def test_deepseek_v3s_learning_follows_its_fine_tuning_and_freezes_routers():
    recipe = load_recipe("rl/deepseek-v3")
    assert recipe.from_ == str(load_recipe("sft/deepseek-v3").folder)
    assert (recipe.router, recipe.curves.router_bias_speed(0)) == ("freeze", 0.0)
    assert recipe.grpo.kl_weight > 0


def test_tiny_runs_on_two_processes():
    recipe = load_recipe("pretrain/tiny")
    assert (recipe.parallel.processes, recipe.parallel.expert) == (2, 2)
    assert recipe.data.seq_length == 256
    assert recipe.total_tokens % recipe.data.seq_length == 0
    assert recipe.training.eval_interval
    assert recipe.resolved_backend(GPU_SERVER) == "local"
    assert not recipe.on_gpu(GPU_SERVER)


def test_yaml_text_of_a_recipe_is_for_people():
    text = load_recipe("pretrain/deepseek-v3").to_yaml()
    assert "14.8T" in text
    assert "2000 steps" in text
    assert yaml_text.parse(text, "here")["curves"]["batch_size"][0]["until"] == "469B"
