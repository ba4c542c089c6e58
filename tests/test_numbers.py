"""Counts, tokens, times and bytes as people read them."""

import pytest
from rich.filesize import decimal

from dsv3_plugin.numbers import (
    bytes_text,
    count_text,
    figure_text,
    money_text,
    number_of,
    time_text,
    tokens_text,
)


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (1, ("rank",), "1 rank"), (0, ("rank",), "0 ranks"), (2048, ("GPU",), "2,048 GPUs"),
        (1, ("process", "processes"), "1 process"), (2, ("process", "processes"), "2 processes"),
    ],
)  # fmt: skip
def test_one_thing_is_singular(number, words, text):
    assert number_of(number, *words) == text


@pytest.mark.parametrize(
    ("number", "decimals", "text"),
    [(0, 1, "0"), (999, 1, "999"), (671_026_404_352, 1, "671.0B"), (11_507_286_272, 2, "11.51B")],
)
def test_counts_have_a_unit(number, decimals, text):
    assert count_text(number, decimals) == text


@pytest.mark.parametrize(
    ("tokens", "text"), [(512, "512"), (8192, "8.192K"), (14.8e12, "14.8T"), (1.2345e9, "1.234B")]
)
def test_tokens_are_told_in_the_size_people_use(tokens, text):
    assert tokens_text(tokens) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5s"), (65, "1m05s"), (5400, "1h30m"), (90_000 * 24, "25d00h"), (59.7, "1m00s")],
)
def test_time_is_told_in_two_units(seconds, text):
    assert time_text(seconds) == text


@pytest.mark.parametrize("number", [0, 1, 2, 999, 1000, 12_345, 5 * 10**9, 1_342_540_001_280])
def test_bytes_are_told_as_rich_does(number):
    assert bytes_text(number) == decimal(number)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"), (2788123, "2.788M"), (20, "20.00"), (1541.2, "1.541K"), (999.96, "1000"),
        (0.0123456, "0.01235"), (1.2e-7, "0.0000001200"), (-3.5e9, "-3.500B"),
    ],
)  # fmt: skip
def test_estimates_have_four_digits(number, text):
    assert figure_text(number) == text


def test_money_has_its_currency():
    assert money_text(5_576_000, "USD") == "$5.576M"
    assert money_text(10.6, "EUR", 3) == "EUR 10.6"
