"""Prompts are looked at before a run as it would itself, and nothing is left of that."""

import json
from pathlib import Path

import pytest
import yaml

from dsv3_plugin.checkpoint.tracker import Saved
from dsv3_plugin.data.tokenizer import train_bpe
from dsv3_plugin.errors import UserError
from dsv3_plugin.launch.conversations import prepare_data
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.training import parent

RECIPE = {
    "base": "pretrain/tiny",
    "stage": "rl",
    "from": "weights",
    "data": {
        "corpus": "asked.jsonl",
        "tokenizer": "parent",
        "packing": "prompts",
        "fim_rate": 0.0,
        "held_out": 0.0,
        "held_out_sets": {"apart": "apart.jsonl"},
    },
    "training": {"steps": 10, "eval_interval": 5},
    "rollouts": {"prompts": 4, "max_prompt_tokens": 24, "max_tokens": 16},
    "parallel": {"expert": 1},
}
LONG = "who asked all this? " * 9


def write(path: str, prompts: list[str]) -> None:
    rows = [json.dumps({"prompt": prompt, "answer": "4"}) for prompt in prompts]
    Path(path).write_text("".join(f"{row}\n" for row in rows))


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that can begin, with three prompts: two of them as one, one too long."""
    monkeypatch.chdir(tmp_path)
    Path("rl.yaml").write_text(yaml.safe_dump(RECIPE))
    write("asked.jsonl", ["2 + 2?", "1 + 3?", "2 + 2?", LONG])
    write("apart.jsonl", ["3 + 1?"])
    train_bpe(["2 + 2?\n" * 9], 300, tmp_path / "weights/tokenizer")
    model = load_recipe("rl.yaml").model
    saved = Saved(tmp_path / "weights/iter_0000010", 10, False)
    begins_with = parent.Parent(tmp_path / "weights", saved, model, None)
    monkeypatch.setattr(parent, "find", lambda place: begins_with)
    return tmp_path


def test_prompts_are_counted_and_nothing_is_written(weights: Path) -> None:
    before = sorted(weights.rglob("*"))
    said: list[str] = []
    prepare_data("rl.yaml", [], said.append)
    assert said[:2] == ["2 prompts of asked.jsonl.", "1 prompt of held-out set apart."]
    assert said[2].startswith("Not asked of asked.jsonl: ")
    assert sorted(weights.rglob("*")) == before


def test_what_the_run_would_refuse_is_refused(weights: Path) -> None:
    write("apart.jsonl", ["1 + 3?"])
    with pytest.raises(UserError, match="take what is trained on out of it"):
        prepare_data("rl.yaml", [], print)
