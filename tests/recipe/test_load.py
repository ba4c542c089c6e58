"""From files, bases and overrides to a recipe."""

import re
import subprocess
import sys

import pytest

from dsv3_plugin.data.hub import tokenizer_folder_of
from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe import corpora
from dsv3_plugin.recipe.load import (
    changed,
    load_model,
    load_recipe,
    load_recipe_or_model,
)
from dsv3_plugin.recipe.merging import merge
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.training import parent


def test_base_merges_key_by_key(tmp_path):
    (tmp_path / "shape.yaml").write_text(load_model("tiny").to_yaml())
    (tmp_path / "parent.yaml").write_text(
        "base: pretrain/tiny\nmodel: shape.yaml\ntraining: {seed: 7}\n"
        "curves: {mtp_weight: 0.2}\ndirectory: elsewhere\n"
    )
    folder = tmp_path / "below"
    folder.mkdir()
    (folder / "child.yaml").write_text(
        "base: ../parent.yaml\nmodel: {num_layers: 2, moe_layer_freq: '[0]+[1]'}\n"
        "training: {eval_steps: 3}\n"
    )
    child = load_recipe(folder / "child.yaml", ["training.log_interval=2"])
    assert child.name == "child"
    assert child.directory == "runs/child"
    assert (child.training.seed, child.training.eval_steps, child.training.log_interval) == (
        7, 3, 2,
    )  # fmt: skip
    assert child.training.micro_batch_size == load_recipe("pretrain/tiny").training.micro_batch_size
    assert child.curves.mtp_weight(0) == 0.2
    assert (child.model.num_layers, child.model.hidden_size) == (2, load_model("tiny").hidden_size)


def test_a_recipe_cannot_build_on_itself(tmp_path):
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(UserError) as refusal:
        load_recipe(tmp_path / "a.yaml")
    assert str(refusal.value).endswith(
        "a.yaml: builds on itself through base (a.yaml → b.yaml → a.yaml): have it name another "
        "there."
    )


@pytest.mark.parametrize(
    ("load", "other"),
    [(load_recipe, "pretrain/tiny"), (load_model, "tiny")],
    ids=["recipe", "model"],
)
def test_who_names_the_file_itself_without_its_suffix_is_told_so(load, other, tmp_path):
    (tmp_path / "b6.yaml").write_text("base: b6\n")
    with pytest.raises(UserError) as refusal:
        load(tmp_path / "b6.yaml")
    assert str(refusal.value).endswith(
        f"b6.yaml: base: 'b6' is this file itself, a circle: name another, such as {other}."
    )


@pytest.mark.parametrize(
    "text", ["import os\nx = {1: 2}\n", "def f():\n  return 1\n"], ids=["no YAML", "YAML"]
)
@pytest.mark.parametrize("load", [load_recipe, load_recipe_or_model])
def test_another_file_than_yaml_is_told_by_its_name(tmp_path, text, load):
    program = tmp_path / "train.py"
    program.write_text(text)
    with pytest.raises(UserError, match=r"train\.py .* are YAML \(NAME\.yaml\)"):
        load(str(program))


def test_a_recipe_may_have_any_name(tmp_path):
    (tmp_path / "tiny.v2").write_text("base: pretrain/tiny\n")
    assert load_recipe_or_model(str(tmp_path / "tiny.v2")).model.num_layers == 4


@pytest.mark.parametrize(
    ("below", "above", "model"),
    [
        ("tiny", {"num_layers": 2}, {"base": "tiny", "num_layers": 2}),
        ({"base": "tiny", "num_layers": 2}, "kimi-k2", "kimi-k2"),
        ({"base": "tiny", "num_layers": 2}, {"base": "kimi-k2"}, {"base": "kimi-k2"}),
        ({"base": "tiny"}, {"num_layers": 3}, {"base": "tiny", "num_layers": 3}),
    ],
)
def test_models_merge_as_models(below, above, model):
    assert merge({"model": below}, {"model": above}) == {"model": model}


def test_overrides_reach_the_model():
    recipe = load_recipe("pretrain/tiny", ["model.hidden_size=64", "curves.learning_rate=1e-4"])
    assert recipe.model.hidden_size == 64
    assert recipe.model.num_layers == load_model("tiny").num_layers
    assert recipe.curves.learning_rate(10**9) == 1e-4


def test_schedule_from_a_csv_beside_the_recipe(tmp_path):
    (tmp_path / "mine.csv").write_text("0F0,,3F0,3B0,,0B0\n1F0,2F0,,2B0,1B0\n")
    (tmp_path / "run.yaml").write_text(
        "base: pretrain/tiny\nparallel: {processes: 4, pipeline: 2}\n"
        "training: {micro_batch_size: 1}\ncurves: {batch_size: 2}\n"
        "pipeline: {schedule: mine.csv}\n"
    )
    recipe = load_recipe(tmp_path / "run.yaml")
    assert recipe.pipeline.schedule == str(tmp_path / "mine.csv")
    assert (recipe.pipeline_stages, recipe.executor) == (4, "ours")


def test_models_and_recipes_by_name_or_path(tmp_path):
    assert isinstance(load_recipe_or_model("deepseek-v3"), ModelConfig)
    assert isinstance(load_recipe_or_model("pretrain/deepseek-v3"), Recipe)
    load_model("tiny").write(tmp_path / "m.yaml")
    assert load_recipe_or_model(str(tmp_path / "m.yaml")) == load_model("tiny").model_copy(
        update={"name": "tiny"}
    )
    with pytest.raises(UserError, match=r"is a model, which takes no overrides: .* model=tiny and"):
        load_recipe_or_model("tiny", ["a=1"])


def test_a_model_is_no_recipe_and_a_recipe_no_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.yaml").write_text("base: tiny\nhidden_size: 256\n")
    with pytest.raises(UserError, match=r"model.yaml is a model, and a recipe is asked for: name"):
        load_recipe("model.yaml")
    (tmp_path / "mine.yaml").write_text("base: pretrain/tiny\nmodel: tiny\n")
    with pytest.raises(UserError, match=r"mine.yaml is a recipe, and a model is asked for"):
        load_recipe("pretrain/tiny", ["model=mine.yaml"])


def test_a_models_file_may_build_on_another(tmp_path, monkeypatch):
    (tmp_path / "wide.yaml").write_text("base: tiny\nhidden_size: 256\n")
    (tmp_path / "wider.yaml").write_text("base: wide.yaml\nmoe_router_topk: 2\n")
    (tmp_path / "round.yaml").write_text("base: round.yaml\nhidden_size: 256\n")
    changes = {"name": "wider", "hidden_size": 256, "moe_router_topk": 2}
    wider = load_model("tiny").model_copy(update=changes)
    assert load_recipe_or_model(str(tmp_path / "wider.yaml")) == wider
    monkeypatch.chdir(tmp_path)
    assert load_recipe("pretrain/tiny", ["model=wider.yaml"]).model == wider
    with pytest.raises(UserError, match="builds on itself through base"):
        load_model("round.yaml")


OF_ONE_KIND = {
    "wide.yaml": "base: tiny\nffn_hidden_size: 200\n",
    "wider.yaml": "base: wide.yaml\nhiden_size: 6\n",
    "named.yaml": "base: wide.yaml\nname: foo\n",
    "alone.yaml": "base: tiny\n",
    "itself.yaml": "base: itself.yaml\nhidden_size: 256\n",
    "over.yaml": "base: alone.yaml\ntraining: {steps: 3}\n",
    "misplaced.yaml": "base: pretrain/tiny\nhidden_size: 256\n",
    "half.yaml": "training: {steps: 3}\n",
    "empty.yaml": "# nothing\n",
}


@pytest.mark.parametrize(
    ("name", "planned", "trained"),
    [
        ("wider.yaml", "unknown key 'hiden_size' (nearest: 'hidden_size')", "is a model, and a"),
        ("named.yaml", "foo", "is a model, and a recipe is asked for"),
        ("alone.yaml", "alone", "is a model, and a recipe is asked for"),
        ("itself.yaml", "itself.yaml: builds on itself through base", "is a model, and a recipe"),
        (
            "over.yaml",
            "over.yaml: base: alone.yaml is a model, and this is a recipe: name it with `model: "
            "alone.yaml`, and with base a recipe, such as pretrain/tiny.",
            "over.yaml: base: alone.yaml is a model, and this is a recipe",
        ),
        ("misplaced.yaml", "'hidden_size' (nearest: 'model.hidden_size')", "'model.hidden_size'"),
        ("half.yaml", "the key 'model' is missing", "the key 'model' is missing"),
        ("empty.yaml", "empty.yaml says nothing: write a recipe there, such as", "or have one"),
    ],
)
def test_a_file_is_what_it_builds_on(name, planned, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file, text in OF_ONE_KIND.items():
        (tmp_path / file).write_text(text)
    if " " not in planned:
        assert load_recipe_or_model(name).name == planned
    else:
        with pytest.raises(UserError, match=re.escape(planned)):
            load_recipe_or_model(name)
    with pytest.raises(UserError, match=re.escape(trained)):
        load_recipe(name)


def test_what_contradicts_the_rest_is_named_with_its_override():
    with pytest.raises(UserError) as refusal:
        load_recipe("pretrain/tiny", ["training.steps=3", "model.num_layers=6"])
    assert str(refusal.value).endswith(
        "tiny.yaml with model.num_layers=6: model: moe_layer_freq describes 4 layers, num_layers "
        "says 6: write 'model.moe_layer_freq=[0]*1+[1]*5', or the like."
    )


@pytest.mark.parametrize(
    ("recipe", "overrides", "said"),
    [
        (
            "rl/tiny-sft",
            ["training.seed=3", "training.steps=30"],
            "tiny-sft.yaml with training.steps=30: curves.learning_rate: piece 2: ends at step 18 "
            "(60% of 30 steps), and the piece before at step 20: give the run 34 steps or more, or "
            "this piece a later until, or a length with for.",
        ),
        ("rl/tiny", ["rollouts.max_tokens=400"], "with rollouts.max_tokens=400: rollouts.max_pro"),
        (
            "rl/tiny",
            ["rewards.match.address=http://x", "rollouts.n=4"],
            "tiny.yaml with rewards.match.address=http://x: rewards.match is judged here",
        ),
        (
            "pretrain/tiny",
            ["data.seq_length=2048", "parallel.timeout_minutes=3"],
            "tiny.yaml with data.seq_length=2048: data.seq_length",
        ),
    ],
)
def test_the_override_because_of_which_a_recipe_is_refused_is_named(recipe, overrides, said):
    with pytest.raises(UserError, match=re.escape(said)):
        load_recipe(recipe, overrides)


def test_what_a_model_is_to_be_written_as_fits_where_the_reader_is(tmp_path):
    wrong = {
        "num_layers": (6, 'write `moe_layer_freq: "[0]*1+[1]*5"`', "'model.moe_layer_freq=[0]*1+["),
        "moe_router_topk": (9, "or `moe_router_group_topk: 3`", "or model.moe_router_group_topk=3"),
        "moe_ffn_hidden_size": (
            "null", 'with `moe_layer_freq: "[0]*4"` and `num_moe_experts: null`.',
            "with 'model.moe_layer_freq=[0]*4' and model.num_moe_experts=null.",
        ),
    }  # fmt: skip
    for key, (value, in_file, as_override) in wrong.items():
        mine = tmp_path / "mine.yaml"
        mine.write_text(f"base: pretrain/tiny\nmodel: {{{key}: {value}}}\n")
        with pytest.raises(UserError, match=re.escape(in_file)):
            load_recipe(mine)
        with pytest.raises(UserError, match=re.escape(as_override)):
            load_recipe("pretrain/tiny", [f"model.{key}={value}"])


def test_a_boolean_is_no_number(tmp_path):
    for overrides in (["rollouts.async=true"], ["rollouts={async: true}"]):
        with pytest.raises(UserError, match=r"rollouts.async: true is no number: write 1"):
            load_recipe("rl/tiny", overrides)
    with pytest.raises(UserError, match=r"moe_layer_freq.* false is no number: write 0"):
        load_recipe("pretrain/tiny", ["model.moe_layer_freq=[false, 1, 1, 1]"])


def test_what_is_wrong_without_overrides_blames_none(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: rl/tiny\nrollouts: {max_tokens: 400}\n")
    with pytest.raises(UserError, match=r"mine\.yaml: rollouts\.max_prompt_tokens 16 and max_tok"):
        load_recipe(tmp_path / "mine.yaml", ["rollouts.n=4"])


def test_a_file_that_was_meant_without_its_suffix_is_named(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("base: pretrain/tiny")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"'mine' is no recipe, and mine\.yaml is a file: name"):
        load_recipe("mine")


def test_a_model_is_no_recipe_to_train():
    with pytest.raises(UserError, match=r"is a model, and .* `model: tiny.yaml`"):
        load_recipe("models/tiny")
    with pytest.raises(UserError) as refusal:
        load_recipe("nosuch")
    assert "models/" not in str(refusal.value)
    assert "pretrain/tiny" in str(refusal.value)
    with pytest.raises(UserError, match="is neither a file nor a shipped recipe"):
        load_recipe("a" * 5000)  # longer than any file's name


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [", "line"),
        ("a: [0]*1+[1]*5\n", 'line 1: a value with * or & is to be in quotes, such as "[0]*3+[1'),
        ("a:\n\tb: 1\n", "line 2: a tab stands where spaces have to: indent with spaces."),
        ("a:\n  b: 1\n   c: 1\n", "line 3: this line has a colon too many, or does not begin "),
        ("a:\n  b: 1\n c: 1\n", "line 3: this line does not begin below its neighbours: ind"),
        ("a: 1\nb\nc: 1\n", "line 3: the line before is no key with a value: write `key: value`"),
        ("a: 'b\n", "line 2: a text in quotes does not end: close it"),
        ("a: - b\n", "line 1: an item of a list (-) does not stand alone: begin a line with it"),
        ("a: *b\n", "line 1: found undefined alias 'b': write each key as `key: value`, and put a"),
        ("a: {b: 1\nc: 1\n", "line 2: a mapping lacks a comma between its keys, or the } at"),
        (
            'base: pretrain/tiny\ntraining: {steps: "100"}\n',
            "'training.steps' is '100'; it must be a valid integer: write 100, without quotes",
        ),
        ("- 1\n", "holds list, not a mapping"),
        ("base: 3\n", "'base' must be the name or path of a recipe"),
        ("base: nothing\n", "'nothing' is neither a file nor a shipped recipe"),
        ("training: {steps: 1}\n", "the key 'model' is missing"),
    ],
)
def test_files_that_are_no_recipe(text, sentence, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file():
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such recipe file"):
        load_recipe("nowhere.yaml")
    with pytest.raises(UserError, match=r"'runs/tiny' is neither .* shipped recipe such as pretra"):
        load_recipe("runs/tiny")
    with pytest.raises(UserError, match=r"shipped recipe \(nearest: 'pretrain/tiny'\)"):
        load_recipe("pretrian/tiny")
    with pytest.raises(UserError, match=r"tiny comes with dsv3, name it without \.yaml"):
        load_recipe("pretrain/tiny.yaml")


def test_reading_a_recipe_takes_little():
    code = "import sys, dsv3_plugin.recipe.load; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    heavy = ("torch", "megatron", "numpy", "matplotlib", "dsv3_plugin.schedules.search")
    assert not [name for name in answer.stdout.split() if name.startswith(heavy)]


def test_paths_are_relative_to_where_the_page_says(tmp_path, monkeypatch):
    """Other recipes, models and clusters to the file that names them, all else to where we are."""
    there, here = tmp_path / "there", tmp_path / "here"
    for folder in (there, here):
        folder.mkdir()
    (there / "model.yaml").write_text(load_model("tiny").to_yaml())
    (there / "below.yaml").write_text("base: pretrain/tiny\nmodel: model.yaml\n")
    (there / "mine.yaml").write_text(
        "base: below.yaml\nstage: extend\nfrom: runs/before\ndirectory: run\n"
        "data: {path: data, corpus: texts, tokenizer: tokens}\ncheckpoint: {directory: kept}\n"
    )
    monkeypatch.chdir(here)
    recipe = load_recipe("../there/mine.yaml")
    assert recipe.model.num_layers == load_model("tiny").num_layers
    found = (recipe.folder, recipe.data_folder, recipe.checkpoint_folder)
    assert [path.resolve() for path in found] == [here / name for name in ("run", "data", "kept")]
    assert corpora.members(recipe.data.corpus)[0].place == (str(here / "texts"),)
    assert tokenizer_folder_of(recipe.data.tokenizer).resolve() == here / "tokens"
    with pytest.raises(UserError, match="from: runs/before does not exist"):
        parent.find(recipe.from_)


@pytest.mark.parametrize(
    ("given", "there"),
    [
        (["training.tokens=100K"], (None, 100_000, None)),
        (["training.steps=7"], (7, None, None)),
        (["training={tokens: 8K, seed: 1}"], (None, 8000, None)),
        (["training.tokens=8K", "training.steps=null"], (None, 8000, None)),
        (["training.seed=1"], (240, None, None)),
    ],
)
def test_a_budget_takes_the_place_of_the_one_below(given, there, tmp_path):
    def budget(recipe):
        return recipe.training.steps, recipe.training.tokens, recipe.training.epochs

    assert budget(load_recipe("pretrain/tiny", given)) == there
    assert budget(changed(load_recipe("pretrain/tiny"), given)) == there
    (tmp_path / "below.yaml").write_text("base: pretrain/tiny\ntraining: {tokens: 90K}\n")
    assert load_recipe(tmp_path / "below.yaml").training.tokens == 90_000
    shorter = load_recipe(tmp_path / "below.yaml", ["training.steps=3"])
    assert budget(shorter) == (3, None, None)


def test_plain_positions_say_nothing_of_yarn(tmp_path):
    (tmp_path / "whole.yaml").write_text(load_recipe("pretrain/tiny").to_yaml())
    yarn = ["model.rope_type=yarn"]
    with pytest.raises(UserError, match="nothing says by how much: give rotary_scaling_factor"):
        load_recipe(tmp_path / "whole.yaml", yarn)
    assert load_recipe("pretrain/deepseek-v3", yarn).model.rotary_scaling_factor == 40
    said = ["model.rotary_scaling_factor=4", "model.original_max_position_embeddings=256"]
    for words in (
        [*yarn, *said],
        [*said, *yarn],
        ["model={rope_type: yarn, rotary_scaling_factor: 4}", said[1]],
    ):
        model = load_recipe(tmp_path / "whole.yaml", words).model
        assert (model.rope_type, model.rotary_scaling_factor) == ("yarn", 4)


def test_two_budgets_of_one_file_are_refused(tmp_path):
    (tmp_path / "two.yaml").write_text("base: pretrain/tiny\ntraining: {tokens: 90K, steps: 3}\n")
    with pytest.raises(UserError, match=r"give either steps or tokens: there are steps 3 and tok"):
        load_recipe(tmp_path / "two.yaml")
