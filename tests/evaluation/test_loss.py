"""The arithmetic of losses by position, with a model made by hand."""

import math

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3_plugin.evaluation.loss import Losses, losses_on


@given(length=st.integers(1, 600))
def test_buckets_are_powers_of_two_and_hold_every_token_once(length):
    losses = Losses("a set", 3, tuple(float(place) for place in range(length)))
    buckets = losses.buckets
    contexts = [context for one in buckets for context in range(one.first, one.last + 1)]
    assert contexts == [*range(1, length + 1)]
    assert all(math.log2(one.last).is_integer() for one in buckets[:-1])
    assert sum(one.tokens for one in buckets) == losses.tokens == 3 * length
    together = math.fsum(one.loss * one.tokens for one in buckets) / losses.tokens
    assert together == pytest.approx(losses.loss)


def test_losses_are_means_over_sequences_at_each_place():
    def model(tokens):
        return (tokens[1:] - tokens[:-1]).astype(numpy.float32)

    told = []
    sequences = [numpy.array([0, 1, 4, 4]), numpy.array([2, 5, 5, 6])]
    losses = losses_on("a set", sequences, model, told.append)
    assert losses.by_position == (2.0, 1.5, 0.5)
    assert losses.loss == pytest.approx(4 / 3)
    assert losses.perplexity == pytest.approx(math.exp(4 / 3))
    assert [(one.first, one.last, one.loss) for one in losses.buckets] == [
        (1, 1, 2.0), (2, 2, 1.5), (3, 3, 0.5),
    ]  # fmt: skip
    assert told == [1, 2]


def test_a_loss_without_bound_has_a_perplexity_too():
    assert Losses("a set", 1, (709.0, 711.0)).perplexity == math.inf
    assert math.isnan(Losses("a set", 1, (math.nan,)).perplexity)
