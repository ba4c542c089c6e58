"""`dsv3 plan`: counts and plans as tables, as JSON and as a page, and what cannot be asked for."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from dsv3_plugin.cli import plan_cases
from dsv3_plugin.cli.command import app
from dsv3_plugin.numbers import count_text
from dsv3_plugin.planner.counts import parameter_counts
from dsv3_plugin.planner.plan import Limit
from dsv3_plugin.recipe.load import load_model
from dsv3_plugin.report.plan.counts import counts_mapping
from tests.plans import plan


def test_mapping_has_the_promised_keys():
    counts = counts_mapping(load_model("deepseek-v3"), 4096)
    assert counts["parameters_total"] == 684_489_845_504
    assert counts["flops_per_token_forward_backward"] == 260_641_652_736
    assert [layer["kind"] for layer in counts["layers"]] == [
        "embedding", "dense", "moe", "mtp", "head",
    ]  # fmt: skip
    for layer in counts["layers"]:
        assert sum(layer["components"].values()) == layer["parameters"]


@pytest.mark.parametrize("what", ["deepseek-v3", "pretrain/deepseek-v3"])
def test_plan_answers_without_torch(what):
    code = (
        "import sys; from dsv3_plugin.cli.command import app\n"
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
        "Warning: it can be trained, and its checkpoints cannot be exported: tiny has no Hugging "
        "Face deepseek_v3 form: it has no shared expert (n_shared_experts 0); one is "
        "moe_shared_expert_intermediate_size: 48.\n"
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


def test_a_plan_reads_no_data(dsv3, trained):
    other = dsv3("plan", trained.recipe, f"directory={trained.folder}", "data.corpus=elsewhere")
    assert other.code == 0


@pytest.fixture
def planned(monkeypatch) -> list[tuple[str, str, float]]:
    """Plans are made up; what each was asked for: (recipe, cluster, imbalance)."""
    asked = []

    def made(recipe, cluster, machine, imbalance=1.0):
        asked.append((recipe.name, cluster.name, imbalance))
        return plan(cluster=cluster, imbalance=imbalance)

    monkeypatch.setattr(plan_cases, "make_plan", made)
    return asked


def test_a_recipe_is_planned_on_its_cluster_or_on_another(dsv3, planned):
    said = dsv3("plan", "pretrain/deepseek-v3")
    assert said.code == 0, said.err
    assert "684,489,845,504" in said.out
    assert "of h800" in said.out
    assert "whole run" in said.out
    dsv3("plan", "pretrain/deepseek-v3", "--cluster", "h100")
    dsv3("plan", "pretrain/deepseek-v3", "cluster=h200")
    dsv3("plan", "pretrain/tiny")
    assert planned == [
        ("deepseek-v3", "h800", 1.0),
        ("deepseek-v3", "h100", 1.0),
        ("deepseek-v3", "h200", 1.0),
        ("tiny", "cpu", 1.0),
    ]


def test_memory_is_shown_at_an_imbalance_beside_balance(dsv3, planned):
    said = dsv3("plan", "pretrain/deepseek-v3", "--imbalance", "1.2")
    assert planned == [("deepseek-v3", "h800", 1.2), ("deepseek-v3", "h800", 1.0)]
    assert "at balance" in said.out
    assert "at 1.2 × mean" in said.out


def test_json_of_a_recipe_keeps_the_counts_and_adds_the_plan(dsv3, planned):
    counted = json.loads(dsv3("plan", "pretrain/deepseek-v3", "--json", "--seq-length", 4096).out)
    told = json.loads(dsv3("plan", "pretrain/deepseek-v3", "--json").out)
    assert planned == [("deepseek-v3", "h800", 1.0)]  # counts alone need no plan
    assert told.items() >= counted.items()
    assert [*told][len(counted) :] == [
        "cluster", "imbalance", "processes", "phases", "totals", "limit",
    ]  # fmt: skip


def test_a_model_has_its_counts_alone(dsv3, planned):
    assert "cluster" not in json.loads(dsv3("plan", "deepseek-v3", "--json").out)
    assert planned == []


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_what_does_not_fit_is_shown_and_then_refused(dsv3, monkeypatch, form):
    limit = Limit(
        False,
        "it does not fit: pipeline rank 1 needs 92.0 GB of 80.0",
        ("training.micro_batch_size=1",),
        "it fits with training.micro_batch_size=1 (61.0 GB)",
    )
    monkeypatch.setattr(plan_cases, "make_plan", lambda *_: plan(limit=limit))
    said = dsv3("plan", "pretrain/deepseek-v3", *form)
    assert said.code == 2
    assert "92.0 GB" in said.out
    assert said.err == (
        "dsv3: pretrain/deepseek-v3: it does not fit: pipeline rank 1 needs 92.0 GB of 80.0; it "
        "fits with training.micro_batch_size=1 (61.0 GB).\n"
    )


def test_recipes_side_by_side_each_with_its_overrides(dsv3, planned):
    v3 = "pretrain/deepseek-v3"
    said = dsv3("plan", v3, "--compare", v3, "cluster=h100", "kimi-k2")
    assert said.code == 0, said.err
    assert planned == [("deepseek-v3", "h800", 1.0), ("deepseek-v3", "h100", 1.0)]
    assert said.out.count("684.5B") == 2
    assert count_text(parameter_counts(load_model("kimi-k2")).total) in said.out
    told = json.loads(dsv3("plan", "--compare", "pretrain/tiny", "pretrain/tiny", "--json").out)
    assert [one["name"] for one in told["recipes"]] == ["pretrain/tiny", "pretrain/tiny"]
    assert all("phases" in one for one in told["recipes"])


@pytest.mark.usefixtures("planned")
def test_a_page_is_written_beside_the_table(dsv3, tmp_path):
    page = tmp_path / "plan.html"
    said = dsv3("plan", "pretrain/tiny", "--html", page)
    assert said.code == 0, said.err
    assert "whole run" in said.out
    assert page.read_text(encoding="utf-8").count("<h1>pretrain/tiny</h1>") == 1
    assert dsv3("plan", "pretrain/tiny", "--compare", "deepseek-v3", "--html", page).code == 0
    assert "2 plans side by side" in page.read_text(encoding="utf-8")


@pytest.mark.usefixtures("planned")
def test_every_pipeline_rank_is_shown_when_asked_for(dsv3):
    few, all_of_them = dsv3("plan", "pretrain/tiny"), dsv3("plan", "pretrain/tiny", "--ranks")
    assert all_of_them.out.count("\n") == few.out.count("\n") + 1


def test_a_plan_follows_from_measured_steps(dsv3, tmp_path):
    table = tmp_path / "measured.yaml"
    table.write_text("rows: [{recipe: pretrain/tiny, step_seconds: 1.0}]")
    before = json.loads(dsv3("plan", "pretrain/tiny", "--json").out)
    told = json.loads(dsv3("plan", "pretrain/tiny", "--json", "--calibrate", table).out)
    (constant,) = told["calibration"]["constants"]
    assert constant["name"] == "gemm_fp32"
    assert told["cluster"]["efficiency"]["gemm_fp32"]["value"] == constant["value"]
    assert told["phases"][-1]["step_seconds"] > 1.0 > before["phases"][-1]["step_seconds"]
    said = dsv3("plan", "pretrain/tiny", "--calibrate", table)
    assert "cpu, calibrated by one measured step" in said.out
    assert "gemm_fp32:" in said.out


@pytest.mark.usefixtures("planned")
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("deepseek-v3 --cluster h800", "deepseek-v3 is a model, which says nothing of batches"),
        ("deepseek-v3 --imbalance 2", "--imbalance plans a recipe, such as pretrain/deepseek-v3"),
        ("deepseek-v3 --html a.html", "--html is the page of a plan, and deepseek-v3 is only"),
        ("deepseek-v3 --ranks", "--ranks is of a plan, and deepseek-v3 is only counted."),
        ("pretrain/tiny --ranks --seq-length 64", "pretrain/tiny is only counted."),
        ("pretrain/tiny --compare pretrain/tiny --ranks", "--compare several: leave one out."),
        ("pretrain/tiny --imbalance 0.5", "the mean, 1 at balance, and cannot be 0.5"),
        ("pretrain/tiny --imbalance nan", "1 at balance, and cannot be nan"),
        ("pretrain/tiny --imbalance inf", "1 at balance, and cannot be inf"),
        ("pretrain/tiny --imbalance 3", "--imbalance 3 is more than one of 2 ranks has"),
        ("pretrain/tiny --cluster nowhere", "'nowhere' is neither a file nor a shipped cluster"),
        ("pretrain/tiny --cluster .", ". is a folder, and a cluster is asked for"),
        ("pretrain/tiny --cluster h800 --seq-length 8", "write data.seq_length=8"),
        ("pretrain/tiny --imbalance 1 --seq-length 8", "and --imbalance plans a run"),
        ("deepseek-v3 --calibrate x", "--calibrate plans a recipe, such as pretrain/deepseek-v3"),
        ("pretrain/tiny --calibrate nowhere.csv", "nowhere.csv: no such file: calibrate from"),
        ("pretrain/tiny --calibrate .", "metrics.jsonl: no such file: calibrate from"),
        ("pretrain/tiny --html plan.pdf", "--html writes .html files; plan.pdf does not end so"),
        ("pretrain/tiny --html nowhere/a.html", "cannot write nowhere/a.html: No such file"),
        ("pretrain/tiny --json --ranks", "--json has every pipeline rank"),
        ("pretrain/tiny --compare", "pretrain/tiny is alone: name another"),
        ("pretrain/tiny --compare training.steps=5", "pretrain/tiny training.steps=5 is alone"),
        ("pretrain/tiny pretrain/deepseek-v3", "'pretrain/deepseek-v3' is not an override"),
    ],
)
def test_what_makes_no_sense_is_a_sentence(dsv3, words, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = dsv3("plan", *words.split())
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert sentence in said.err
    assert said.out == ""
    assert not [*tmp_path.iterdir()]
