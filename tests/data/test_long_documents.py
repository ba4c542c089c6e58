"""A share of long documents, and what is said where it cannot be had."""

import numpy
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dsv3_plugin.data.long_documents import ByLength, by_length, by_powers_of_four, drawn
from dsv3_plugin.errors import UserError


def has(long: int, short: int) -> ByLength:
    return ByLength(100, bool(long), long, bool(short), short, 900, 20)


def test_documents_are_counted_by_length():
    assert by_length(numpy.array([5, 100, 99, 300]), 100) == ByLength(100, 2, 400, 2, 104, 300, 100)


def test_documents_are_counted_by_powers_of_four():
    lengths = numpy.array([1, 3, 4, 15, 16, 70, 2**31 - 1], numpy.int32)
    assert by_powers_of_four(lengths) == [
        (1, 2, 4), (4, 2, 19), (16, 1, 16), (64, 1, 70), (4**15, 1, 2**31 - 1)
    ]  # fmt: skip


def reach(members, weighted):
    """The smallest and the largest share of long documents that members can give."""
    if weighted and len(members) > 1:
        of_all = sum(weight for _, _, weight in members)
        only_long = sum(weight for _, short, weight in members if not short)
        only_short = sum(weight for long, _, weight in members if not long)
        return only_long / of_all, 1 - only_short / of_all
    return float(not any(short for _, short, _ in members)), float(any(m[0] for m in members))


@given(
    members=st.lists(
        st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(1, 9)), min_size=1
    ).filter(lambda them: all(a + b for a, b, _ in them)),
    share=st.floats(0, 1),
    weighted=st.booleans(),
)
def test_the_share_is_had_and_weights_are_kept(members, share, weighted):
    found = [has(long, short) for long, short, _ in members]
    weights = [float(weight) for _, _, weight in members] if weighted else None
    least, most = reach(members, weighted)
    assume(all(share == end or abs(share - end) > 1e-6 for end in (least, most)))
    if not least <= share <= most:
        with pytest.raises(UserError):
            drawn(found, weights, share)
        return
    ways = drawn(found, weights, share)
    total = sum(way.weight for way in ways)
    if weighted and len(members) > 1:
        for way, weight in zip(ways, weights, strict=True):
            assert way.weight / total == pytest.approx(weight / sum(weights))
    of_long = 0.0
    for way, each in zip(ways, found, strict=True):
        natural = each.share if way.long_share is None else way.long_share
        assert way.long_share is None or (each.long_tokens and each.short_tokens)
        of_long += way.weight / total * natural
    assert of_long == pytest.approx(share, abs=1e-6)


def test_without_weights_it_is_as_of_one_corpus():
    books, web = drawn([has(80, 0), has(20, 400)], None, 0.5)
    assert books.weight / (books.weight + web.weight) == pytest.approx(0.4)
    assert web.long_share == pytest.approx(0.1 / 0.6)


@pytest.mark.parametrize(
    ("found", "weights", "share", "said"),
    [
        ([has(0, 9)], None, 0.5, r"none has 100 tokens \(the longest has 900, half of them have"),
        ([has(9, 0)], None, 0.5, "needs short documents too, and all have 100 tokens or more"),
        ([has(9, 0), has(0, 9)], [1.0, 3.0], 0.5, "cannot be had with these weights, only 0.25 to"),
        ([has(9, 9), has(0, 9)], [1.0, 3.0], 0.5, "only 0 to 0.25: members without documents"),
    ],
    ids=["none-long", "none-short", "fixed", "too-much"],
)
def test_what_cannot_be_had(found, weights, share, said):
    with pytest.raises(UserError, match=said):
        drawn(found, weights, share)
