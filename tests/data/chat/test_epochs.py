"""Epochs of conversations: each once, or by weights; and the sequences they are packed into."""

from collections import Counter
from itertools import pairwise

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3_plugin.data.chat.epochs import Epochs

LENGTHS = st.lists(
    st.lists(st.integers(1, 16), min_size=1, max_size=20).map(numpy.array), min_size=1, max_size=3
)


@given(LENGTHS, st.integers(0, 2**31 - 1), st.integers(0, 3), st.sampled_from([1, 2, 4]))
def test_every_conversation_is_there_once_and_fits(lengths, seed, number, multiple):
    epochs = Epochs(lengths, None, room=16, multiple=multiple, seed=seed)
    packs = epochs.epoch(number)
    assert sorted(packs.pieces) == list(range(sum(map(len, lengths))))
    every = numpy.concatenate(lengths)
    for begin, end in pairwise(packs.starts):
        places = -(-every[packs.pieces[begin:end]] // multiple) * multiple
        assert 0 < places.sum() <= 16
    again = Epochs(lengths, None, 16, multiple, seed).epoch(number)
    assert numpy.array_equal(again.pieces, packs.pieces)


def test_epochs_have_orders_of_their_own():
    epochs = Epochs([numpy.full(50, 8)], None, room=16, multiple=1, seed=7)
    assert not numpy.array_equal(epochs.epoch(0).pieces, epochs.epoch(1).pieces)


@pytest.mark.parametrize("weights", [(1.0, 3.0), (0.5, 0.5), (2.0, 1.0)])
def test_with_weights_files_have_their_shares_and_repeat_evenly(weights):
    lengths = [numpy.full(10, 4), numpy.full(30, 4)]
    epochs = Epochs(lengths, weights, room=16, multiple=1, seed=7)
    drawn = [epochs.epoch(number).pieces for number in range(12)]
    assert all(abs(len(each) - 40) <= 1 for each in drawn)
    times = Counter(numpy.concatenate(drawn).tolist())
    for file, members in ((0, range(10)), (1, range(10, 40))):
        total = sum(times[member] for member in members)
        assert total == pytest.approx(480 * weights[file] / sum(weights), abs=1)
        assert max(times[m] for m in members) - min(times[m] for m in members) <= 1


def test_a_file_of_weight_zero_is_never_drawn():
    epochs = Epochs([numpy.full(10, 4), numpy.full(5, 4)], (0.0, 1.0), 16, 1, seed=7)
    assert {*epochs.epoch(0).pieces.tolist()} == {*range(10, 15)}
