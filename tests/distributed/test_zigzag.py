"""Which tokens lie on which rank, against what upstream hands out, and back in order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.models.common.embeddings import rope_utils

from dsv3_plugin.distributed.zigzag import Zigzag, taken
from dsv3_plugin.errors import UserError


class Group:
    """What upstream asks a process group."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = (lambda: rank), (lambda: size)


@st.composite
def zigzags(draw: st.DrawFn) -> Zigzag:
    size = draw(st.integers(1, 8))
    chunks = draw(st.lists(st.integers(0, 3), min_size=1, max_size=5))
    rank = draw(st.integers(0, size - 1))
    return Zigzag(rank, size, tuple(2 * size * chunk for chunk in chunks))


@given(zigzags())
def test_what_the_ranks_hold_is_the_sequence(zigzag: Zigzag) -> None:
    whole = torch.arange(zigzag.tokens)
    parts = [taken(whole, zigzag.rows(rank)) for rank in range(zigzag.size)]
    assert {len(part) for part in parts} == {zigzag.tokens // zigzag.size}
    assert torch.equal(taken(whole, zigzag.by_rank), torch.cat(parts))
    if zigzag.tokens:
        assert torch.equal(taken(torch.cat(parts), zigzag.in_order), whole)


@given(zigzags())
def test_a_chunk_sees_its_sample_up_to_its_last_token(zigzag: Zigzag) -> None:
    sample = torch.tensor([n for n, length in enumerate(zigzag.lengths) for _ in range(length)])
    rows = taken(torch.arange(zigzag.tokens), zigzag.rows())
    covered = 0
    for own, seen in zigzag.halves:
        mine = rows[own]
        assert own.start == covered
        covered = own.stop
        assert mine[-1] == seen.stop - 1
        assert torch.equal(mine, torch.arange(int(mine[0]), seen.stop))
        assert sample[seen].unique().tolist() == [int(sample[mine[0]])]
        assert seen.start == 0 or sample[seen.start - 1] != sample[seen.start]
    assert covered == len(rows)


@pytest.mark.parametrize("lengths", [(48,), (24, 72, 12)])
def test_positions_are_those_of_upstreams_rope(lengths: tuple[int, ...], monkeypatch) -> None:
    """THD: a sample's frequencies of each rank, which start anew for every sample."""
    size = 3
    table = torch.arange(max(lengths))
    for rank in range(size):
        zigzag = Zigzag(rank, size, lengths)
        theirs = [
            rope_utils._get_thd_freqs_on_this_cp_rank(rank, size, torch.empty(n // size), table)
            for n in lengths
        ]
        assert torch.equal(taken(table, zigzag.positions), torch.cat(theirs))


def test_a_sample_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="20 tokens does not divide by twice context 4"):
        Zigzag(0, 4, (16, 20))
