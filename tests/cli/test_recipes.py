"""`dsv3 recipes` and `dsv3 explain`."""

import json

import pytest
from typer.testing import CliRunner

from dsv3_plugin.cli.command import app
from dsv3_plugin.planner.cluster import shipped_clusters
from dsv3_plugin.recipe.load import load_model, load_recipe
from dsv3_plugin.recipe.schema import DEFAULT_STAGE, STAGES


def answer(*words: str) -> str:
    ended = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return ended.output


def test_all_that_ships_is_listed_by_the_name_that_finds_it():
    ships = json.loads(answer("recipes", "--json"))
    assert {"pretrain/tiny", "extend/deepseek-v3-32k", "sft/tiny"} <= ships["recipes"].keys()
    for name in ships["recipes"]:
        load_recipe(name)
    for name in ships["models"]:
        load_model(name)
    assert list(ships["clusters"]) == shipped_clusters()
    lines = answer("recipes").splitlines()
    for kind, said in ships.items():
        assert kind in lines
        for name, summary in said.items():
            assert summary.endswith("."), name
            assert any(line.split(maxsplit=1) == [name, summary] for line in lines), name


def test_a_key_is_explained_with_its_value_in_a_recipe():
    assert answer("explain", "training.eval_steps", "extend/tiny-1k").splitlines() == [
        "training.eval_steps",
        "  takes    integer > 0",
        "  default  10",
        "  Batches per evaluation, of the size of the first batch.",
        "",
        "in extend/tiny-1k, as extend/tiny-1k says:",
        "  eval_steps: 5",
    ]


def test_a_key_of_a_model_is_explained_with_its_value_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "base: tiny\nnum_layers: 5\nmoe_layer_freq: '[0]*1+[1]*4'\n"
    )
    for key in ("num_layers", "model.num_layers"):
        lines = answer("explain", key, "tiny").splitlines()
        assert (lines[0], lines[-2:]) == ("model.num_layers", ["in tiny:", "  num_layers: 4"])
        assert answer("explain", key, "mine.yaml").endswith("\nin mine.yaml:\n  num_layers: 5\n")
    said = answer("explain", "training.steps", "tiny").splitlines()[-1]
    assert said == "tiny is a model, which has no such key."


def test_a_section_is_said_by_several():
    assert "\nin rl/tiny, as rl/tiny, rl/tiny-base and pretrain/tiny say:\n" in answer(
        "explain", "training", "rl/tiny"
    )


@pytest.mark.parametrize(
    ("key", "recipe", "last"),
    [
        ("base", "extend/tiny-1k", "  base: pretrain/tiny"),
        ("base", "pretrain/tiny", "pretrain/tiny says no base of its own."),
        ("model.base", "pretrain/tiny", "  model.base: tiny"),
        ("model.base", "sft/tiny", "sft/tiny says no model.base of its own."),
    ],
)
def test_the_keys_by_which_files_build_on_others_are_explained(key: str, recipe: str, last: str):
    lines = answer("explain", key, recipe).splitlines()
    assert lines[:2] == [key, "  takes    text"]
    assert "A key of files alone" in lines[3]
    assert lines[-1] == last


def test_a_whole_number_is_explained_as_its_file_writes_it():
    lines = answer("explain", "pipeline.timeout", "pretrain/deepseek-v3-256").splitlines()
    assert lines[-1] == "  timeout: 1200"


def test_what_can_be_explained_is_said_a_line_each():
    _, *lines = answer("explain").splitlines()
    keys = dict(line.split(maxsplit=1) for line in lines)
    assert list(keys)[:3] == ["name", "stage", "model"]
    assert keys["optimizer"] == "AdamW."
    assert keys["grpo"].split(maxsplit=2) == ["(stage:", "rl)", "The loss."]


@pytest.mark.parametrize(
    ("word", "first", "among"),
    [
        # Names before meanings, whichever section they are in.
        ("experts", "model.num_moe_experts", "parallel.expert"),
        ("learning rate", "curves.learning_rate", "optimizer.weight_decay"),
        ("eval_steps", "training.eval_steps", "training.eval_steps"),
        # What it is called elsewhere.
        ("lr", "curves.learning_rate", "curves.learning_rate"),
        ("n_routed_experts", "model.num_moe_experts", "model.num_moe_experts"),
        ("beta", "grpo.kl_weight", "optimizer.betas"),
    ],
)
def test_a_word_that_is_no_key_is_looked_for(word: str, first: str, among: str):
    head, *lines = answer("explain", word).splitlines()
    assert head.startswith(f"No key of a recipe is '{word}'; ")
    keys = [line.split()[0] for line in lines]
    assert keys[0] == first
    assert among in keys
    assert len(keys) == len(set(keys)) < 20


@pytest.mark.parametrize("words", [("x",), ("qqqq",), ("experts", "pretrain/tiny")])
def test_what_is_nowhere_is_refused_with_a_way_out(words, dsv3):
    said = dsv3("explain", *words)
    assert (said.code, said.out) == (2, "")
    assert f"no recipe has a key '{words[0]}': dsv3 explain, alone, says which" in said.err


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("from", f"from (stage: {', '.join(name for name in STAGES if name != DEFAULT_STAGE)})"),
        ("curves.learning_rate", "  takes    curve"),
        ("stage", f"  takes    {', '.join(STAGES)}"),
    ],
)
def test_what_is_told_is_plain_text(key: str, line: str):
    said = answer("explain", key)
    assert line in said.splitlines()
    assert "](" not in said
    assert "`" not in said


@pytest.mark.parametrize(
    ("key", "recipe", "line"),
    [
        ("from", "pretrain/tiny", "pretrain/tiny is of stage pretrain, which has no such key."),
        ("rollouts.n", "sft/tiny", "sft/tiny is of stage sft, which has no such key."),
        (
            "rewards.accuracy",
            "rl/tiny",
            "rl/tiny has no rewards.accuracy: its rewards has match alone.",
        ),
        (
            "rewards.length.margin",
            "rl/tiny",
            "rl/tiny has no rewards.length.margin: its rewards has match alone.",
        ),
        ("rollouts.curriculum.low", "rl/tiny", "  curriculum: null"),
        ("rewards.match.weight", "rl/tiny", "  weight: 1"),
        ("rewards.NAME.margin", "rl/tiny", "      script: null"),
    ],
)
def test_a_key_that_a_recipe_has_not_is_said_not_to_be_there(key, recipe, line):
    *above, last = answer("explain", key, recipe).splitlines()
    assert last == line
    assert f"  {line.strip()}" not in above
