"""Several held-out sets in turn: an evaluation's samples of each, whatever was read before."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3_plugin.data.evaluated import Endless, InTurn


class Samples(list):
    index_split = SimpleNamespace(name="valid")


def in_turn(lengths, per_evaluation, consumed):
    sets = [
        Endless(Samples(f"set {which} sample {i}" for i in range(length)))
        for which, length in enumerate(lengths)
    ]
    return InTurn(sets, per_evaluation, consumed)


@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    per_evaluation=st.integers(1, 6),
    done=st.integers(0, 5),
)
def test_each_set_is_read_on_from_where_it_was(lengths, per_evaluation, done):
    consumed = done * len(lengths) * per_evaluation
    whole, resumed = (in_turn(lengths, per_evaluation, begun) for begun in (0, consumed))
    position = 0
    for evaluation in range(done + 2):
        for which, length in enumerate(lengths):
            for sample in range(evaluation * per_evaluation, (evaluation + 1) * per_evaluation):
                expected = f"set {which} sample {sample % length}"
                assert whole[position] == expected
                if position >= consumed:
                    assert resumed[position] == expected
                position += 1


@pytest.mark.parametrize("consumed", [1, 7, 13])
def test_a_run_that_goes_on_with_other_sets_begins_with_the_first(consumed):
    sets = in_turn([5, 5, 5], 2, consumed)
    assert [sets[consumed + i].split(" sample")[0] for i in range(6)] == [
        "set 0", "set 0", "set 1", "set 1", "set 2", "set 2",
    ]  # fmt: skip
