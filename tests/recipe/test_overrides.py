"""`key=value` on a command line: a value is taken as written, to its last character."""

from pathlib import Path

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe.load import load_recipe, load_recipe_or_model
from dsv3_plugin.recipe.overrides import parse
from dsv3_plugin.recipe.schema import STAGES
from tests.recipe.refused import refusal

KIND = STAGES["pretrain"]


@pytest.mark.parametrize(
    "text",
    [
        "run #2", "a: b", "*x", "&x", "!x", "%x", "@x", "`x`", '"x"', "'x'", "- x", "run[/a]",
        "1e3", "0x10", "12", "yes", "true", "~", "./null", "2026-11-25", "12:30:45", "[exp1]",
        "[exp1]/run", "{a}", "γ→", "a=b", "| x", "> x", "  x ",
    ],
)  # fmt: skip
def test_text_is_taken_as_written(text):
    assert load_recipe("pretrain/tiny", [f"directory={text}"]).directory == text
    assert parse(f"data.text_key={text}").read(KIND) == {"data": {"text_key": text}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("training.steps=10", 10), ("training.steps=null", None), ("training.tokens=10M", "10M"),
        ("optimizer.eps=1e-9", 1e-9), ("parallel.zero1=true", True), ("parallel.zero1=yes", "yes"),
        ("data.path=null", None), ("data.path=1 #2", "1 #2"),
        ("data.corpus=[a, 'b #']", ["a", "b #"]), ("data.corpus=12", "12"),
        ("data.corpus=[a]/b", "[a]/b"), ("pipeline.timeout=.5", 0.5),
        ("curves.learning_rate=[{constant: 1e-3}]", [{"constant": 1e-3}]),
        ("megatron_args.seed=3", 3), ("megatron_args.run-name=3 #1", "3 #1"), ("unknown=1", 1),
        ("model=a #1.yaml", "a #1.yaml"), ("dispatch.ranks_per_node=auto", "auto"),
        ("dispatch.ranks_per_node=8", 8), ("data.corpus={path: a}", {"path": "a"}),
    ],
)  # fmt: skip
def test_numbers_lists_and_mappings_are_yaml_where_the_key_takes_them(text, value):
    override = parse(text)
    read = override.read(KIND)
    for key in override.keys:
        read = read[key]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("overrides", "said", "not_said"),
    [
        (["training.log_interval=3", "training.stepz=3"], "with training.stepz=3: unknown", "log_"),
        (["training.seed=1", "seed=3"], "with seed=3: unknown key 'seed' (nearest: 'training.seed",
         "seed=1"),
        (["model.hidden_size=64", "data.seq_length=x"], "with data.seq_length=x: 'data.seq_", "64"),
        (["training.Steps=3"], "with training.Steps=3: unknown key 'training.Steps'", "seed="),
        (["data.int=3"], "with data.int=3: unknown key 'data.int' (known: corpus,", "seed="),
        (["directory=a\0b"], "with directory=a\\x00b: 'directory' holds characters that", "seed"),
        (['data.corpus=[a, "\\uDCFF"]'], "'data.corpus.1' holds characters that", "seed"),
        (["training.seed=1", "stage=none"], "with stage=none: there is no stage 'none'", "seed"),
    ],
)  # fmt: skip
def test_a_sentence_names_the_override_that_it_is_about(overrides, said, not_said):
    with pytest.raises(UserError) as refused:
        load_recipe("pretrain/tiny", overrides)
    assert said in str(refused.value)
    assert not_said not in str(refused.value)


@pytest.mark.parametrize(
    "key",
    [
        "name", "directory", "stage", "backend", "data.corpus", "data.packing", "data.text_key",
        "precision.dtype", "pipeline.schedule", "dispatch.kind", "model.rope_type", "from",
        "rollouts", "rewards",
    ],
)  # fmt: skip
def test_null_takes_back_what_is_text_and_what_is_another_stages(key, tmp_path):
    (tmp_path / "tiny.yaml").write_text("base: pretrain/tiny\n")
    by_file = "null"
    for part in reversed(key.split(".")):
        by_file = f"{{{part}: {by_file}}}"
    (tmp_path / "other").mkdir()
    (tmp_path / "other/tiny.yaml").write_text(f"{{base: pretrain/tiny, {by_file[1:]}")
    given = load_recipe(tmp_path / "tiny.yaml", [f"{key}=null"])
    assert given == load_recipe(tmp_path / "other/tiny.yaml")
    assert given.name == "tiny"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.tokenizer=null", "'data.tokenizer' is null, and it has no default; it must"),
        ("base=null", "name the other recipe in place of"),
        ("backend=", "'backend=' has no value: give it one, or null for its default"),
        ("stage=", "'stage=' has no value: give it one, or null for its default"),
        ("name=", "'name=' has no value: give it one, or null for its default"),
        ("data.held_out_sets.apart=", "'data.held_out_sets.apart=' has no value: give it one, or"),
        ("megatron_args.seed=", "'megatron_args.seed=' has no value: give it one, or null"),
        ("model=", r"'model=' has no value: give it one\.$"),
        ("cluster=", "'cluster=' has no value: give it one, or null, which takes back what was"),
        ("training.steps=", "'training.steps=' has no value: give it one, or null, which takes"),
        ("rollouts.n=null", "'rollouts' is a key of stage rl, and the stage is pretrain"),
    ],
)
def test_null_where_there_is_nothing_to_take_back_to(override, said):
    with pytest.raises(UserError, match=said):
        load_recipe("pretrain/tiny", [override])


@pytest.mark.parametrize(
    ("override", "way_out"),
    [
        ("rewards.mine.score={}", "write 'rewards={mine.score: {}}'."),
        ("rewards.mine.score.weight=0.5", "write 'rewards={mine.score: {weight: 0.5}}'."),
        ("rewards.accuracy.wieght=1", "accuracy.wieght' (nearest: 'rewards.accuracy.weight')."),
        ("data.held_out_sets.my.set=a", "write 'data.held_out_sets={my.set: a}'."),
    ],
)
def test_a_name_with_dots_is_written_in_braces(override, way_out):
    with pytest.raises(UserError) as refused:
        load_recipe("rl/tiny", [override])
    assert str(refused.value).endswith(way_out)
    assert "mine.score" in load_recipe("rl/tiny", ["rewards={mine.score: {}}"]).rewards


def test_the_home_folder_is_no_folder_called_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    recipe = load_recipe(
        "pretrain/tiny", ["directory=~/run", "data.path=~/data", "checkpoint.directory=~nobody0/c"]
    )
    assert recipe.folder == Path("/home/me/run")
    assert recipe.data_folder == Path("/home/me/data")
    assert recipe.checkpoint_folder == Path("~nobody0/c")
    with pytest.raises(UserError, match="'~nobody0' is neither a file nor"):
        load_recipe("~nobody0")


def test_brackets_with_something_else_inside_are_refused():
    with pytest.raises(UserError, match=r"'data.corpus=\[a: b: c\]', line 1: "):
        load_recipe("pretrain/tiny", ["data.corpus=[a: b: c]"])


@pytest.mark.parametrize(
    "override",
    [
        "model.num_layers=1000000000", "model.num_moe_experts=1000000000",
        "model.mtp_num_layers=1000000000", "model.moe_layer_freq=[0]*1000000000",
        "model.moe_layer_freq=([0]*4000+[1]*4000)*1", "model.hidden_size=10000000000",
        "parallel.processes=1000000000", "parallel.pipeline=1000000000",
        "pipeline.layout=E(t|)*1000000000L", "pipeline.layout=E(t*99999|)*99999L",
        "curves.batch_size=[{linear: 1000000000, from: 8, for: 10T}, {constant: 1000000000}]",
        "training.steps=1000000000000000000000", "data.seq_length=1000000000000000000000",
        "curves.learning_rate=[{linear: 1, from: 0, for: 999999999999999999999T}]",
    ],
)  # fmt: skip
def test_sizes_that_nobody_means_are_refused(override):
    with pytest.raises(UserError):
        load_recipe("pretrain/tiny", [override])


def test_a_folder_is_no_recipe(tmp_path):
    with pytest.raises(UserError, match=r"is a folder, and a recipe is asked for: name a YAML"):
        load_recipe(tmp_path)
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(UserError, match=r"it is that of a run, whose recipe is .*recipe.yaml\."):
        load_recipe(tmp_path)


def test_what_may_be_a_model_suggests_models():
    with pytest.raises(UserError, match=r"shipped recipe or model \(nearest: 'deepseek-v"):
        load_recipe_or_model("deepseek-v4")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model=pretrain/tiny"], "is neither a file nor a shipped model (nearest: 'tiny')."),
        (["curves.learning_rate.0.linear=1e-3"], "a piece cannot be changed alone: give the whole"),
        (["model=tinny"], "'tinny' is neither a file nor a shipped model (nearest: 'tiny')"),
        (
            ["training.steps=null"],
            "training.steps=null: training: there is no budget: give training",
        ),
        (
            ["training.seed="],
            "'training.seed=' has no value: give it one, or null for its default.",
        ),
        (["directory="], "'directory=' has no value: give it one, or null for its default."),
        (["base=rl/tiny"], "base is a key of files alone: name rl/tiny in place of "),
        (
            ["model.num_layers=8", "model=deepseek-v3"],
            "with model.num_layers=8 model=deepseek-v3: the second takes the place of all of "
            "model, the first with it: put model.num_layers=8 behind it.",
        ),
        (["model={num_layers: 3"], "'model={num_layers: 3' lacks the } at its end: a shell takes"),
        (["data.corpus=[a, b"], "lacks the ] at its end: a shell takes it whole in quotes, 'data."),
        (["steps"], "'steps' is not an override"),
        (
            ["rewards.match.weight=1"],
            "with rewards.match.weight=1: 'rewards' is a key of stage rl, and the stage is "
            "pretrain: leave it out, or set the stage.",
        ),
        (["[]=3"], "'[]=3' is not an override"),
    ],
)
def test_an_override_that_cannot_be_is_refused_in_one_sentence(overrides, sentence):
    assert sentence in refusal("pretrain/tiny", overrides)
