"""Curves, and the batch that they give."""

import pytest

from tests.recipe.piped import PIPED
from tests.recipe.refused import refusal


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["curves.learning_rate=-1"], "learning_rate goes below 0 (-1): give values of 0 or more."),
        (["curves.learning_rate=x"], "curves.learning_rate: 'x' is not a curve"),
        (["curves.learning_rate={linear: 1}"], "{linear: 1} is one piece of a curve: put it in br"),
        (
            ["curves.learning_rate=[1e-4]"],
            "piece 1 is 0.0001: write {constant: 0.0001, until: 10%}",
        ),
        (
            ["curves.learning_rate=[[100, 1e-5]]"],
            "piece 1 is [100, 1e-05]: write {linear: 1e-05, until: 100}, or another shape.",
        ),
        (["curves.learning_rate=[null]"], "piece 1 is null: write a mapping such as {constant: "),
        (["curves.learning_rate=[{linear: 1, for: 1K}]"], "learning_rate: piece 1: the first"),
    ],
)
def test_curves_that_are_none(overrides, sentence):
    assert sentence in refusal("pretrain/tiny", overrides)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["curves.learning_rate=[{linear: 1e-3, from: 0, for: 0%}, {constant: 1e-3}]"],
            "piece 1: '0%' is no length: write one such as 10%, or leave it out.",
        ),
        (
            ["curves.learning_rate=[{linear: 1e-3, from: 0, for: 1 epoch}, {constant: 1e-3}]"],
            "piece 1: '1 epoch' is for training on conversations: give tokens, steps, or a share "
            "of the run such as 10%.",
        ),
    ],
)
def test_lengths_that_no_piece_has(overrides, sentence):
    assert sentence in refusal("rl/tiny", overrides)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["training.micro_batch_size=3"],
            "batch size 8 is not a multiple of 6 sequences (training.micro_batch_size 3 × 2 data-"
            "parallel ranks): take 6 or 12, or training.micro_batch_size 4.",
        ),
        (
            ["curves.batch_size=0"],
            "curves.batch_size: batch size 0 is less than 1, and a step has sequences (training."
            "micro_batch_size 4 × 2 data-parallel ranks): take 8.",
        ),
        (
            ["curves.batch_size=9", "parallel={processes: 1, expert: 1}"],
            "sequences (training.micro_batch_size 4 × 1 data-parallel rank): take 8 or 12, or "
            "training.micro_batch_size 3.",
        ),
    ],
)
def test_batches_that_ranks_cannot_share(overrides, sentence):
    assert sentence in refusal("pretrain/tiny", overrides)


def test_a_batch_that_a_pipeline_cannot_share():
    overrides = [
        *PIPED,
        "pipeline.schedule=interleaved",
        "pipeline.virtual_stages=2",
        "curves.batch_size=6",
    ]
    sentence = "a multiple of 4 sequences (training.micro_batch_size 1 × 2 data-parallel ranks × 2"
    assert sentence in refusal("pretrain/tiny", overrides)
