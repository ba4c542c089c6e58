"""Fill-in-the-middle: order, rate, inverse, and independence of everything but seed and text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3_plugin.data.fim import Sentinels, cut, join

SENTINELS = Sentinels(begin=1, hole=2, end=3)
seeds = st.integers(min_value=-(2**63), max_value=2**63 - 1)


def restore(ids):
    """The document's ids from PSM order: an inverse written for the test."""
    hole, end = ids.index(SENTINELS.hole), ids.index(SENTINELS.end)
    assert ids[0] == SENTINELS.begin
    prefix, suffix, middle = ids[1:hole], ids[hole + 1 : end], ids[end + 1 :]
    return prefix + middle + suffix


@given(text=st.text(), seed=seeds)
def test_the_document_comes_back(text, seed):
    prefix, middle, suffix = cut(text, rate=1.0, seed=seed)
    assert prefix + middle + suffix == text

    ids = [[ord(character) + 10 for character in part] for part in (prefix, middle, suffix)]
    whole = join(*ids, SENTINELS)
    assert restore(whole) == [ord(character) + 10 for character in text]


@given(text=st.text(), seed=seeds)
def test_rate_zero_is_the_identity(text, seed):
    assert cut(text, rate=0.0, seed=seed) is None


@given(text=st.text(), seed=seeds, rates=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_higher_rate_cuts_more_documents_and_none_differently(text, seed, rates):
    low, high = sorted(rates)
    at_low = cut(text, rate=low, seed=seed)
    assert at_low is None or at_low == cut(text, rate=high, seed=seed)


def test_order_is_prefix_suffix_middle():
    assert join([10, 11], [20], [30, 31], SENTINELS) == [1, 10, 11, 2, 30, 31, 3, 20]


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_rate(rate):
    n = 20_000
    count = sum(cut(f"document {i}", rate=rate, seed=7) is not None for i in range(n))
    deviation = (n * rate * (1 - rate)) ** 0.5
    assert abs(count - n * rate) < 4 * deviation


def test_cuts_are_uniform_over_characters():
    # Two independent uniform points of {0, …, L}: the smaller one has mean L(2L+1) / 6(L+1), and
    # is 0 unless both are positive.
    n, length = 20_000, 9
    parts = [cut(f"{i:0{length}}", rate=1.0, seed=3) for i in range(n)]
    outer = length * (2 * length + 1) / (6 * (length + 1))
    for k, expected in enumerate((outer, length - 2 * outer, outer)):
        mean = sum(len(part[k]) for part in parts) / n
        assert mean == pytest.approx(expected, rel=0.03)  # 4 standard errors are 0.024
    without_prefix = sum(not prefix for prefix, _, _ in parts) / n
    assert without_prefix == pytest.approx(1 - (length / (length + 1)) ** 2, rel=0.07)


def test_seeds_and_texts_are_independent():
    texts = [f"text {i}" for i in range(200)]
    by_seed = [[cut(text, rate=0.5, seed=seed) for text in texts] for seed in (1, 2, 1)]
    assert by_seed[0] == by_seed[2] != by_seed[1]
