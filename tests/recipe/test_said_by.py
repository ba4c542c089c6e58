"""Which file says the value of a key: the recipe's own, one below, a model's, or none."""

import pytest

from dsv3_plugin.recipe.said_by import inherited, said_by

FILES = {
    "top.yaml": "{base: middle.yaml, data: {tokenizer: bpe-500}, host: null}",
    "middle.yaml": "{base: pretrain/tiny, model: {num_layers: 3}, "
    "training: {eval_steps: 3}, host: cpu}",
    "other.yaml": "{base: middle.yaml, model: own.yaml}",
    "own.yaml": "{base: deepseek-v3, vocab_size: 300}",
}


@pytest.mark.parametrize(
    ("recipe", "key", "files"),
    [
        ("top.yaml", "training.eval_steps", ["middle.yaml"]),
        ("top.yaml", "host", ["top.yaml"]),  # which takes back
        ("top.yaml", "data.tokenizer", ["top.yaml"]),
        ("top.yaml", "data", ["top.yaml", "pretrain/tiny"]),
        ("top.yaml", "model.num_layers", ["middle.yaml"]),
        ("top.yaml", "model.hidden_size", ["models/tiny"]),
        ("top.yaml", "name", []),
        ("top.yaml", "pipeline.timeout", []),
        ("other.yaml", "model.num_layers", ["models/deepseek-v3"]),
        ("other.yaml", "model.vocab_size", ["own.yaml"]),
        ("pretrain/tiny", "curves.learning_rate", ["pretrain/tiny"]),
    ],
)
def test_the_file_that_wins_says_it(tmp_path, monkeypatch, recipe, key, files):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    assert said_by(recipe, key) == files


def test_a_run_is_told_with_its_own_recipe(tmp_path, dsv3):
    run = tmp_path / "mine"
    run.mkdir()
    (run / "recipe.yaml").write_text("{base: pretrain/tiny, training: {eval_steps: 3}}")
    said = dsv3("explain", "training.eval_steps", run).out
    assert said.endswith(f"in {run}, as {run}/recipe.yaml says:\n  eval_steps: 3\n")
    assert "by default:\n" in dsv3("explain", "pipeline.timeout", run).out


def test_of_what_is_inherited_the_nearest_is_named(tmp_path):
    (tmp_path / "below.yaml").write_text("base: pretrain/tiny\ntraining: {eval_interval: 7}\n")
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: below.yaml\ntraining: {steps: 20}\n")
    keys = ["training.eval_interval", "checkpoint.interval", "training.steps", "data.seq_length"]
    assert inherited(mine, ["data.seq_length=64"], keys) == {
        "training.eval_interval": str(tmp_path / "below.yaml"),
        "checkpoint.interval": "pretrain/tiny",
    }
    assert inherited(mine, ["training={eval_interval: 3}", "checkpoint=null"], keys[:2]) == {}
    assert inherited("pretrain/tiny", ["training.steps=20"], keys) == {}
