"""Null takes back what a recipe builds on, where it is no value of the key."""

import pytest

from dsv3_plugin.recipe.load import changed, load_model, load_recipe


@pytest.mark.parametrize(
    "change", ["model.moe_layer_freq=null", "model={base: tiny, moe_layer_freq: null}"]
)
def test_a_models_key_has_its_default_again(change):
    model = load_recipe("pretrain/tiny", [change]).model
    assert model.moe_layer_freq == [1] * 4
    assert model.num_moe_experts == load_model("tiny").num_moe_experts


def test_what_a_person_named_is_taken_back():
    named = load_recipe("pretrain/tiny", ["megatron_args={a: 1, b: 2}", "megatron_args.a=null"])
    assert named.megatron_args == {"b": 2}
    judged = load_recipe("rl/tiny", ["rewards={match: {weight: null}}", "rewards.accuracy=null"])
    assert "accuracy" not in judged.rewards
    assert judged.rewards["match"].weight == 1.0


def test_a_file_takes_back_what_it_builds_on(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "base: pretrain/tiny\nbackend:\nname:\ndata: {held_out:}\nparallel:\n"
        "training: {eval_steps: null}\nmodel: {q_lora_rank: null}\n"
    )
    recipe = load_recipe(mine)
    said = (recipe.name, recipe.backend, recipe.data.held_out, recipe.parallel.processes)
    assert said == ("mine", "auto", 0.01, 1)
    assert recipe.model.q_lora_rank is None  # which is a value of this key
    (tmp_path / "small.yaml").write_text("base: tiny\nrotary_base: null\nmoe_layer_freq:\n")
    small = load_model(tmp_path / "small.yaml")
    assert (small.rotary_base, small.moe_layer_freq) == (10000.0, [1] * 4)
    assert changed(recipe, ["optimizer=null"]) == recipe
