"""A plan as a page: everything in it, nothing beside it, and what is written is whole."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.planner.plan import Limit
from dsv3_plugin.recipe.load import load_model
from dsv3_plugin.report.plan.assumptions import assumptions
from dsv3_plugin.report.plan.bars import memory_bars, time_bars
from dsv3_plugin.report.plan.case import Case
from dsv3_plugin.report.plan.page import page, write_page
from dsv3_plugin.report.plan.words import MEMORY, TIME
from tests.plans import GB, cluster, phase, plan

VOID = {"meta", "br"}


def case(made=None, name="pretrain/deepseek-v3", balanced=None) -> Case:
    return Case(name, load_model("deepseek-v3"), 4096, made, balanced)


class Nested(HTMLParser):
    """Reads a page, and holds every end of an element against its beginning."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_of_one_plan_says_all_of_it():
    text = page([case(plan())])
    for said in (
        "<h1>pretrain/deepseek-v3</h1>",
        "684,489,845,504 parameters",
        "On 2,048 of the 2,048 GPUs of made-up (Made-Up 80), $2.00 an hour each",
        "Memory is the tightest limit: 72.0 of 80.0 GB.",
        "$4.551M",
        "activations: 50.0 GB",
        "matrix products: 10.00 s, 50.0%",
        "Checkpoints of 9.6 TB, written 210 times",
        "efficiency.gemm_fp8",
        "Large FP8 matrix products with block scales. a test",
    ):
        assert said in text, said
    assert text.count("<svg") == 2


def test_the_page_stands_alone():
    read = Nested(page([case(plan()), case(plan(), "other")]))
    assert not {"script", "link", "img", "iframe", "object"} & {*read.tags}
    assert not [name for name, _ in read.attributes if name in ("src", "href", "srcset")]
    text = page([case(plan())])
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text  # a browser would refuse what slipped in
    assert "prefers-color-scheme: dark" in text


def test_every_part_has_a_colour():
    text = page([case(plan())])
    for part in (*MEMORY, *TIME):
        assert re.search(rf"\.{part}\b.*\{{ fill:", text), part


def test_what_does_not_fit_says_the_way_out():
    change = "recompute=[core_attn]"
    limit = Limit(False, "it does not fit: 92.0 GB", (change,), f"it fits with {change}")
    text = page([case(plan(phase(activations=60 * GB), limit=limit))])
    assert "It does not fit: 92.0 GB; it fits with recompute=[core_attn]." in text


def test_several_plans_begin_with_the_comparison():
    text = page([case(plan(), "a"), case(plan(), "b"), case(name="kimi-k2")])
    assert "<h1>3 plans side by side</h1>" in text
    assert [*re.findall(r"<h2>(.*?)</h2>", text)] == ["a", "b", "kimi-k2"]


def test_both_loads_of_experts_are_shown():
    busier = plan(phase(activations=47 * GB), imbalance=1.2)
    text = page([case(busier, balanced=plan(phase()))])
    assert "at balance" in text
    assert "at 1.2 × mean" in text


def test_names_are_shown_and_not_obeyed():
    hostile = cluster(name="<script>alert(1)</script>", gpu='"><img src=x>\x1b[2J')
    text = page([case(plan(cluster=hostile), "a<b>\u202e")])
    read = Nested(text)
    assert not {"script", "img", "b"} & {*read.tags}
    assert "a&lt;b&gt;\\u202e" in text
    assert "\x1b" not in text


def test_bars_are_shares_of_one_scale():
    drawn = memory_bars(plan(), phase())
    assert drawn.line == 1.0
    fullest = drawn.bars[1]
    assert sum(piece.width for piece in fullest.pieces) == pytest.approx(72 / 80)
    for left, right in zip(fullest.pieces, fullest.pieces[1:], strict=False):
        assert right.start == pytest.approx(left.start + left.width)
    over = memory_bars(plan(), phase(activations=78 * GB))
    assert over.line == pytest.approx(80 / 110)
    assert max(sum(piece.width for piece in bar.pieces) for bar in over.bars) == pytest.approx(1)
    small = memory_bars(plan(cluster=cluster(memory_gb=800)), phase())
    assert small.line is None  # the device has too many times as much
    assert max(sum(piece.width for piece in bar.pieces) for bar in small.bars) == pytest.approx(1)
    half = replace(phase(), time_by_part={"gemm": 10.0}, step_seconds=10.0)
    whole, shorter = time_bars([phase(), half]).bars
    assert sum(piece.width for piece in whole.pieces) == pytest.approx(1)
    assert sum(piece.width for piece in shorter.pieces) == pytest.approx(0.5)


def test_assumptions_are_every_number_of_the_cluster():
    described = cluster()
    rows = {key: (value, words) for key, value, words in assumptions(described).rows}
    assert rows["network.gb_per_second"] == ("50", "Per GPU and direction.")
    assert rows["efficiency.network"][0] == "0.75"
    assert rows["efficiency.network"][1].endswith("a test")
    written = described.model_dump()
    assert {key.partition(".")[0] for key in rows} == {*written}
    for inner in ("peak_tflops", "nvlink", "network", "efficiency"):
        assert {f"{inner}.{key}" for key in written[inner]} <= {*rows}


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "plan.html"
    path.write_text("before")
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_page([case(plan())], path)
    assert path.read_bytes() == b"before"
    assert [*tmp_path.iterdir()] == [path]
    monkeypatch.undo()
    write_page([case(plan())], path)
    assert path.read_text(encoding="utf-8") == page([case(plan())])


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nowhere/plan.html", "cannot write .*nowhere/plan.html: No such file or directory"),
        ("folder.html", "cannot write .*folder.html: Is a directory"),
    ],
)
def test_a_page_that_cannot_be_written_is_a_sentence(tmp_path, name, sentence):
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(UserError, match=sentence):
        write_page([case(plan())], tmp_path / name)
