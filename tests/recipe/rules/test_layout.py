"""Which layers lie on which pipeline stage."""

import pytest

from tests.recipe.piped import PIPED
from tests.recipe.refused import refusal


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["pipeline.layout=Et|tt|L"], "which 2 devices do not divide: write 2 or 4 ("),
        (["pipeline.layout=Et|ttL"], "3 layers (t), and the model has 4: write as many"),
        (["pipeline.layout=tt|ttL"], "is not a layout"),
        (
            ["pipeline.layout=balanced", "pipeline.devices=1"],
            "pipeline.layout: balanced divides the layers among pipeline devices, and there is one",
        ),
        (
            ["pipeline={schedule: zbv, layout: balanced, devices: 4}", "parallel.processes=8"],
            "a layer on each of 8 stages but the first and the last, and the model has 4",
        ),
        (["pipeline.layout=balance"], "pipeline.layout 'balance' is not a layout"),
        (
            ["pipeline.schedule=zbv", "pipeline.devices=4", "parallel.processes=8"],
            "8 pipeline stages need as many layers, and the model has 4: take fewer pipeline.dev",
        ),
        (
            ["pipeline.schedule=zbv", "pipeline.layout=Ett|ttmL"],
            "pipeline.layout has 2 stages, and zbv on 2 devices has 4: write as many (parted by |)",
        ),
        (
            ["pipeline.schedule=zbv", "pipeline.layout=Et|t|t|t||mL"],
            "pipeline.layout has 6 stages, and zbv on 2 devices has 4",
        ),
        (
            ["pipeline.schedule=dualpipe", "pipeline.layout=Et|t|t|tmL"],
            "pipeline.layout has 4 stages, and dualpipe on 2 devices has 2",
        ),
        (
            ["pipeline.schedule=zbv", "pipeline.layout=Et|t|t|tL"],
            "layers (m), and the model has 1 (mtp_num_layers): write as many.",
        ),
        (
            ["pipeline.schedule=zbv", "pipeline.layout=Et|t|ttm|L"],
            "with executor ours both are on the last stage: end the layout in mL",
        ),
        (
            ["pipeline.schedule=interleaved", "pipeline.virtual_stages=2",
             "pipeline.layout=Ett|ttm||L"],
            "must hold all multi-token-prediction layers (m) on one stage, the last of its device",
        ),
        (
            ["pipeline.layout=Et|ttmtL"],
            "after multi-token prediction (m), which comes last: end it in mL.",
        ),
    ],
)  # fmt: skip
def test_layouts_that_cannot_be(overrides, sentence):
    assert sentence in refusal("pretrain/tiny", [*PIPED, *overrides])
