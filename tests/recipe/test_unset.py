"""Null takes back what a recipe builds on, where it is no value of the key."""

import re

import pytest

from dsv3_plugin.errors import UserError
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
    judged = load_recipe(
        "rl/tiny", ["rewards={match: {weight: null}, accuracy: {}}", "rewards.accuracy=null"]
    )
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


@pytest.mark.parametrize(
    ("recipe", "overrides", "sentence"),
    [
        (
            "rl/tiny",
            ["rewards.mtch=null"],
            "tiny.yaml with rewards.mtch=null: there is no mtch that null could take back "
            "(nearest: 'match').",
        ),
        (
            "rl/tiny",
            ["rewards.length=null"],
            "there is no length that null could take back: rewards has match.",
        ),
        (
            "pretrain/tiny",
            ["data.held_out_sets.apart=null"],
            "there is no apart that null could take back: data.held_out_sets is empty.",
        ),
        (
            "rl/tiny",
            ["rewards.match=null"],
            "tiny.yaml with rewards.match=null: rewards is empty: name one at least, such as "
            "rewards.accuracy={}.",
        ),
        (
            "rl/tiny",
            ["rewards.mtch={}"],
            "tiny.yaml with rewards.mtch={}: rewards.mtch: there is no such reward (nearest: "
            "'match'): take one of ",
        ),
    ],
)
def test_a_name_that_nobody_gave_is_not_taken_back(recipe, overrides, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        load_recipe(recipe, overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["rewards.format={}", "rewards.match=null"],
        ["rewards.format={}", "rewards.format=null"],
        ["rewards={format: {}}", "rewards.format=null"],
    ],
)
def test_what_an_override_gives_another_takes_back(overrides):
    assert len(load_recipe("rl/tiny", overrides).rewards) == 1


def test_a_default_is_taken_back(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: rl/tiny\nrewards: null\n")
    assert [*load_recipe(mine, ["rewards.accuracy=null", "rewards.format={}"]).rewards] == [
        "format"
    ]


@pytest.mark.parametrize("section", ["rollouts.curriculum", "precision.fp8"])
def test_null_does_not_switch_on_what_was_off(section, tmp_path):
    above, below = section.split(".")
    key = {"curriculum": "low", "fp8": "format"}[below]
    said = (
        f"with {section}.{key}=null: {section} is null, so there is no {key} that null could take"
    )
    with pytest.raises(UserError, match=re.escape(said)):
        load_recipe("rl/tiny", [f"{section}.{key}=null"])
    for over in (f"{section}={{{key}: null}}", f"{above}={{{below}: {{{key}: null}}}}"):
        assert getattr(getattr(load_recipe("rl/tiny", [over]), above), below) is None
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"base: rl/tiny\n{above}: {{{below}: {{{key}: null}}}}\n")
    assert getattr(getattr(load_recipe(mine), above), below) is None
    whole = load_recipe("rl/tiny").to_yaml()  # which builds on nothing
    assert f"  {below}: null\n" in whole
    mine.write_text(whole.replace(f"  {below}: null\n", f"  {below}: {{{key}: null}}\n"))
    assert getattr(getattr(load_recipe(mine), above), below) is None


def test_null_of_a_key_leaves_its_section_on(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: rl/tiny\nrollouts: {curriculum: {low: 0.3}}\n")
    (tmp_path / "over.yaml").write_text("base: mine.yaml\nrollouts: {curriculum: {low: null}}\n")
    for recipe, overrides in (
        (mine, ["rollouts.curriculum.low=null"]),
        (tmp_path / "over.yaml", []),
        ("rl/tiny", ["rollouts.curriculum={}", "rollouts.curriculum.low=null"]),
        ("rl/tiny", ["rollouts.curriculum.high=0.8", "rollouts.curriculum.low=null"]),
    ):
        assert load_recipe(recipe, overrides).rollouts.curriculum.low == 0.2
