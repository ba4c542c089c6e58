"""`dsv3 plan`: the same counts as JSON and as a table."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from dsv3_plugin.cli import app
from dsv3_plugin.cli.plan import as_mapping
from dsv3_plugin.recipe.load import load_model


def test_mapping_has_the_promised_keys():
    plan = as_mapping(load_model("deepseek-v3"), 4096)
    assert plan["parameters_total"] == 684_489_845_504
    assert plan["flops_per_token_forward_backward"] == 260_641_652_736
    assert [layer["kind"] for layer in plan["layers"]] == [
        "embedding", "dense", "moe", "mtp", "head",
    ]  # fmt: skip
    for layer in plan["layers"]:
        assert sum(layer["components"].values()) == layer["parameters"]


@pytest.mark.parametrize("what", ["deepseek-v3", "pretrain/deepseek-v3"])
def test_plan_answers_without_torch(what):
    code = (
        "import sys; from dsv3_plugin.cli import app\n"
        f"try: app(['plan', {what!r}, '--json'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'megatron', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["parameters_total"] == 684_489_845_504


def test_table_of_a_recipe_fits_a_terminal():
    answer = CliRunner().invoke(app, ["plan", "pretrain/deepseek-v3"])
    assert answer.exit_code == 0, answer.output
    assert "684,489,845,504" in answer.output
    assert max(len(line.rstrip()) for line in answer.output.splitlines()) <= 80


def test_what_could_not_be_exported_is_said_before_anything_is_spent_on_it(dsv3):
    said = dsv3("plan", "pretrain/tiny", "model.moe_shared_expert_intermediate_size=null")
    assert said.code == 0
    assert said.err == (
        "dsv3: it could be trained, and not exported: tiny has no Hugging Face deepseek_v3 form: "
        "it has no shared expert (n_shared_experts 0).\n"
    )
    assert dsv3("plan", "pretrain/tiny").err == ""


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("parallel.zero1=true", "written with parallel.zero1: false"),
        ("data.seq_length=32", "written with data.seq_length: 64"),
        ("model.hidden_size=32", "checkpoints of another model (hidden_size is 64"),
    ],
)
def test_what_could_not_be_resumed_is_refused(dsv3, trained, change, sentence):
    said = dsv3("plan", trained.recipe, f"directory={trained.folder}", change)
    assert said.code == 2
    assert sentence in said.err
