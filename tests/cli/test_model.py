"""`dsv3 model from-hf`: a Hugging Face config as a model's YAML."""

import json

from typer.testing import CliRunner

from dsv3_plugin.cli.command import app
from dsv3_plugin.recipe.hf_config import hf_config
from dsv3_plugin.recipe.load import load_model
from dsv3_plugin.recipe.model import ModelConfig


def test_model_from_hf_writes_a_model(tmp_path):
    folder = tmp_path / "some-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(hf_config(load_model("kimi-k2"))))
    answer = CliRunner().invoke(
        app, ["model", "from-hf", str(folder / "config.json"), "--out", str(tmp_path / "m.yaml")]
    )
    assert answer.exit_code == 0, answer.output
    expected = load_model("kimi-k2").model_copy(update={"name": "some-model"})
    assert ModelConfig.read(tmp_path / "m.yaml") == expected
    printed = CliRunner().invoke(app, ["model", "from-hf", str(folder)])
    assert printed.stdout == (tmp_path / "m.yaml").read_text()
