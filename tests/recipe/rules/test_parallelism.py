"""How the work is divided among processes."""

import pytest

from tests.recipe.refused import refusal


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["parallel.expert=3"],
            "parallel.expert 3 does not divide the 2 ranks of a pipeline stage (2 processes by "
            "pipeline 1): take one that divides them and the 16 routed experts, such as 2.",
        ),
        (
            ["parallel.expert=3", "parallel.processes=6"],
            "parallel.expert 3 does not divide 16 routed experts: take a number that divides them "
            "and the 6 ranks of a pipeline stage, such as 2.",
        ),
        (
            ["parallel.tensor=3"],
            "parallel.tensor 3 does not divide the 4 attention heads, the 4096 vocabulary entries "
            "and the 256 tokens of a sequence: take one that divides all, such as 2.",
        ),
        (
            ["parallel.processes=3"],
            "parallel.expert 2 does not divide the 3 ranks of a pipeline stage (3 processes by "
            "pipeline 1): take one that divides them and the 16 routed experts, such as 1, or "
            "set "
            "parallel.processes to 2 or 4.",
        ),
        (
            ["parallel.processes=1"],
            "the 1 rank of a pipeline stage (1 process by pipeline 1): take one that divides them "
            "and the 16 routed experts, such as 1, or set parallel.processes to 2.",
        ),
        (
            ["parallel.tensor=4"],
            "2 processes do not divide by tensor 4 × pipeline 1 × context 1 = 4: set "
            "parallel.processes to 4, or divide less.",
        ),
        (
            [
                "parallel.processes=8",
                "parallel.tensor=4",
                "parallel.context=2",
                "data.seq_length=252",
            ],
            "tensor 4 does not divide the 126 tokens of a sequence that context 2 leaves a rank: "
            "take one that divides all, such as 2.",
        ),
    ],
)
def test_sizes_that_do_not_divide(overrides, sentence):
    assert sentence in refusal("pretrain/tiny", overrides)
