"""The numbers of a step travel as one vector and arrive as they were sent, to the bit."""

import pytest
import torch

from dsv3_plugin.pipeline.step_numbers import Form, describe, form_of

LAST = torch.finfo(torch.float32).max


def _report(micro_batch: int) -> dict[str, torch.Tensor]:
    loss = torch.tensor([1 / 3 + micro_batch, 4096.0])
    return {"lm loss": loss, "other": torch.tensor(LAST)}


def test_everyone_gets_what_each_rank_has() -> None:
    # DualPipe: the first and the last rank compute losses, and MTP's; the middle has none.
    draw = torch.Generator().manual_seed(0)
    mtp = [torch.rand(1, generator=draw) for _ in range(2)]
    tokens = [torch.tensor(count, dtype=torch.int) for count in (2**24 + 1, 0, 2)]
    ranks = [
        ({0: _report(0), 2: _report(2)}, {"tokens": tokens[0], "loss_values": mtp[0]}),
        ({}, {"tokens": tokens[1]}),
        ({1: _report(1)}, {"tokens": tokens[2], "loss_values": mtp[1]}),
    ]
    form = form_of(
        (describe(next(iter(reports.values()), {})), describe(totals)) for reports, totals in ranks
    )
    vector = sum(form.pack(3, reports, totals, torch.device("cpu")) for reports, totals in ranks)
    reports, totals = form.unpack(3, vector)
    for micro_batch, report in enumerate(reports):
        expected = _report(micro_batch)
        assert list(report) == list(expected)
        assert describe(report) == describe(expected)
        assert all(torch.equal(report[name], expected[name]) for name in expected)
    assert torch.equal(totals["loss_values"], mtp[0] + mtp[1])
    assert totals["tokens"].dtype == torch.int
    assert int(totals["tokens"]) == 2**24 + 3


def test_a_loss_that_is_no_number_arrives_as_such() -> None:
    form = Form({"loss": ((), torch.float32)}, {})
    vector = form.pack(1, {0: {"loss": torch.tensor(float("nan"))}}, {}, torch.device("cpu"))
    [report], _ = form.unpack(1, vector + torch.zeros_like(vector))
    assert report["loss"].isnan()


def test_a_report_that_changes_is_refused() -> None:
    form = Form({"loss": ((), torch.float32)}, {})
    with pytest.raises(RuntimeError, match="must report the same"):
        form.pack(1, {0: {"loss": torch.zeros(2)}}, {}, torch.device("cpu"))
