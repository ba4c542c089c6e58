"""A step of a rank: tiny on the CPU host, the full recipe on a GPU that only answers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.planner.memory.activations import stage_bytes
from dsv3_plugin.planner.resolve import load_resolved
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.stages import Stage
from dsv3_plugin.rehearsal.children import devices, rehearsed
from dsv3_plugin.rehearsal.report import Request
from dsv3_plugin.rehearsal.shim import build
from dsv3_plugin.rehearsal.te import installed
from dsv3_plugin.rehearsal.te.installed import how_to_get_it, te_python
from tests.conftest import Said


def _found(said: Said) -> dict[str, Any]:
    assert said.code == 0, said.out + said.err
    return json.loads(said.out)


@pytest.mark.usefixtures("forked_rehearsals")
def test_tiny_is_rehearsed_on_the_cpu(dsv3: Callable[..., Said], tmp_path: Path) -> None:
    page = tmp_path / "rehearsal.html"
    found = _found(dsv3("rehearse", "pretrain/tiny", "--ranks", "1", "--json", "--html", str(page)))
    assert found["would_run"]
    (rank,) = found["ranks"]
    assert rank["rank"] == 1
    states = ("weights", "gradients", "optimizer")
    assert {part: rank["memory"][part] for part in states} == {
        part: rank["planned"][part] for part in states
    }
    # It is fullest when the head makes its logits: what layers keep is there, and none works, and
    # no token is on its way. The plan has all of that at one moment.
    cluster = load_cluster("cpu")
    setting = Setting.of(
        load_resolved("pretrain/tiny", (), cluster.machine), cluster, cluster.machine, 1.0
    )
    stage = stage_bytes(setting, Stage(embedding=True, dense=1, moe=3, mtp=1, head=True))
    assert rank["memory"]["activations"] == pytest.approx(stage.layers, rel=0.015)
    assert rank["memory"]["logits"] == pytest.approx(rank["planned"]["logits"], rel=0.005)
    # The orders of rows, which the plan has among activations.
    assert rank["memory"]["dispatch_buffers"] < 0.01 * stage.layers
    more = rank["planned"]["dispatch_buffers"] + stage.forward
    total = sum(rank["planned"].values()) - more
    assert sum(rank["memory"].values()) == pytest.approx(total, rel=0.005)
    assert rank["operations"]["kernels"] > 1000
    assert rank["collectives"] > 0
    text = page.read_text(encoding="utf-8")
    assert "It would run." in text
    assert text.count("<svg") == 1
    assert "<script" not in text


@pytest.fixture(scope="module")
def full() -> Callable[..., list[str]]:
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("no C compiler is here")
    if te_python() is None:
        pytest.skip(how_to_get_it())
    # The last batch alone, and as few micro-batches as its schedule takes.
    return lambda *words: [
        *("rehearse", "pretrain/deepseek-v3", "curves.batch_size=15360", "--json"),
        *words,
    ]


@pytest.mark.long
def test_a_rank_of_the_full_recipe_is_as_planned_and_has_five_to_spare_where_experts_are_uneven(
    dsv3: Callable[..., Said], full: Callable[..., list[str]]
) -> None:
    found = _found(dsv3(*full("--ranks", "1024", "--imbalance", "1.2")))
    assert found["would_run"]
    (rank,) = found["ranks"]
    assert rank["schedule"] == "dualpipe_v"
    assert sum(rank["memory"].values()) <= rank["card"] - 5e9
    assert "CUDA runtime" in found["device"]
    for part in (
        "weights", "gradients", "optimizer", "fp8_copies", "activations", "dispatch_buffers",
    ):  # fmt: skip
        assert rank["memory"][part] == pytest.approx(rank["planned"][part], rel=0.05), part
    assert rank["operations"]["by_name"]["attention_forward"][0] == 4 * rank["folded"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pretrain/tiny", "--html", "page.pdf"], "--html writes .html files"),
        (["pretrain/tiny", "--html", "nowhere/page.html"], "cannot write nowhere/page.html: No su"),
        (["pretrain/tiny", "--configuration", "--ranks", "0"], "leave out --ranks"),
        (["pretrain/tiny", "--configuration", "--imbalance", "1.5"], "leave out --imbalance"),
        (["pretrain/tiny", "--ranks", "9"], "give ranks from 0 to 1"),
        (["pretrain/tiny", "--imbalance", "0"], "cannot be 0"),
        (["pretrain/tiny", "no.such=1"], "unknown key 'no'"),
        (["deepseek-v3"], "nearest: 'pretrain/deepseek-v3'"),
        (["pretrain/deepseek-v3", "--cluster", "nowhere"], "nowhere"),
        (["pretrain/deepseek-v3", "--cluster", "mi300x"], "MI300X 192GB is no CUDA device"),
    ],
)
def test_what_cannot_be_rehearsed_is_said(
    dsv3: Callable[..., Said], words: list[str], says: str
) -> None:
    said = dsv3("rehearse", *words)
    assert said.code == 2
    assert says in said.err
    assert said.err.count("\n") == 1


def test_without_transformer_engines_python_no_rank_is_begun(
    dsv3: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "_places", lambda: iter(()))
    said = dsv3("rehearse", "pretrain/deepseek-v3")
    assert said.code == 2
    assert "run `pip install --no-deps --target" in said.err
    assert "`; --configuration rehearses without it." in said.err
    assert said.err.count("\n") == 1


@pytest.mark.long
@pytest.mark.usefixtures("full")
def test_without_a_compiler_a_rank_with_both_ends_of_the_model_is_as_with_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cluster = load_cluster("h800")
    # Embedding and dense layer on the first stage, multi-token prediction and head on the last.
    request = Request("pretrain/deepseek-v3", (), "h800", rank=0, micro_batches=1)
    runtime = devices(cluster, on_gpu=True)
    monkeypatch.setattr(build, "_COMPILERS", ())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    python = devices(cluster, on_gpu=True)
    assert not runtime.lacking
    assert python.lacking == "no C compiler is here ()"
    (expected,), (report,) = rehearsed([request], runtime), rehearsed([request], python)
    assert report.findings == expected.findings == ()
    assert report.memory["logits"] > 0
    assert len(report.forms) == 1
    for counted in ("states", "memory", "moments", "synchronisations", "collectives", "groups"):
        assert getattr(report, counted) == getattr(expected, counted), counted
    assert report.operations.kernels == pytest.approx(expected.operations.kernels, rel=0.02)
    assert report.operations.bytes == pytest.approx(expected.operations.bytes, rel=1e-6)
