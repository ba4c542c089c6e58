"""What a rehearsal is made of: which ranks it steps, and which of them it tells of."""

from collections.abc import Sequence

import pytest

from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.planner.resolve import load_resolved
from dsv3_plugin.rehearsal import rehearsal
from dsv3_plugin.rehearsal.cases import company_of, ranks_of_each_kind
from dsv3_plugin.rehearsal.children import Devices
from dsv3_plugin.rehearsal.rehearsal import Rehearsal, Wanted, rehearse
from dsv3_plugin.rehearsal.report import RankReport, Request
from dsv3_plugin.report.rehearsal import sentences


@pytest.mark.parametrize(
    ("words", "shown", "company"),
    [
        # The shortest step is the step itself, and a rank that keeps company is not told of.
        ((), [0], [0, 1]),
        (("parallel.processes=4", "parallel.pipeline=2"), [0, 2], [0, 1, 2, 3]),
    ],
    ids=["one place", "two places"],
)
def test_ranks_that_keep_company_have_no_rows(
    words: tuple[str, ...],
    shown: list[int],
    company: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, asked = _rehearsed(words, monkeypatch)
    assert sorted({request.rank for request in asked if request.depth == "step"}) == company
    assert [rank.report.rank for rank in found.ranks] == shown


@pytest.mark.parametrize(("layout", "says"), [("Ettttt|t|t|tmL", 1), ("balanced", 0)])
def test_a_layout_that_idles_is_a_finding(
    layout: str, says: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (
        "parallel.processes=4", "parallel.pipeline=4", "parallel.expert=1",
        "pipeline.schedule=1f1b", f"pipeline.layout={layout}", "model.num_layers=8",
        "model.moe_layer_freq=[0,1,1,1,1,1,1,1]",
    )  # fmt: skip
    found, _ = _rehearsed(words, monkeypatch)
    assert len(found.findings) == says
    assert found.would_run
    for finding in found.findings:
        assert finding.sentence.startswith("pipeline rank 3 is busy ")
        assert "% longer than the" in finding.sentence
        assert finding.way_out.startswith("pipeline.layout=balanced, which is E")
        assert sentences.sentence(finding) == f"· {finding.text}."


def test_texts_that_are_on_the_cluster_alone_do_not_stop_a_rehearsal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = "data.corpus: texts does not exist in /here: put it there, or name another"
    found, _ = _rehearsed((), monkeypatch, missing)
    assert found.would_run
    assert [sentences.sentence(finding) for finding in found.findings] == [
        "· data.corpus: texts does not exist in /here, which a rehearsal does without "
        "(put it there, or name another)."
    ]


def _rehearsed(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, *missing: str
) -> tuple[Rehearsal, list[Request]]:
    """A rehearsal whose children say nothing, and what they were asked."""
    cluster = load_cluster("cpu").model_copy(update={"gpus": 4})
    recipe = load_resolved("pretrain/tiny", words, cluster.machine)
    asked: list[Request] = []

    def reported(requests: Sequence[Request], *rest: object) -> list[RankReport]:
        asked.extend(requests)
        return [RankReport(request.rank, 0, memory={"weights": 1}) for request in requests]

    monkeypatch.setattr(rehearsal, "rehearsed", reported)
    wanted = Wanted(
        "pretrain/tiny", words, "cpu", cluster, cluster.machine, recipe,
        tuple(ranks_of_each_kind(recipe)), tuple(company_of(recipe)), 1.0, missing,
    )  # fmt: skip
    return rehearse(wanted, Devices({}, "the CPU host"), lambda: None), asked
