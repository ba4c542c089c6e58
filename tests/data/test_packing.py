"""Packing, and its rounds: each piece once, nothing that fits is cut, whatever is asked later."""

import itertools

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3_plugin.data.packing import pack
from dsv3_plugin.data.rounds import LongShare, Pieces, rounds

ROOM = 16
LENGTHS = st.lists(st.integers(1, 3 * ROOM), min_size=1, max_size=60)


def sequences(packs):
    return [packs.pieces[a:b].tolist() for a, b in itertools.pairwise(packs.starts)]


def best_fit_decreasing(lengths, room):
    """Piece by piece, as the algorithm is defined: how full its sequences are."""
    left = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, free in enumerate(left) if free >= length]
        if fitting:
            left[min(fitting, key=lambda i: left[i])] -= length
        else:
            left.append(room - length)
    return sorted(left)


@given(lengths=st.lists(st.integers(1, ROOM), max_size=80), seed=st.integers(0, 9))
def test_packing_is_best_fit_decreasing(lengths, seed):
    sizes = numpy.array(lengths, int)
    names = numpy.arange(len(lengths)) + 100
    packs = pack(names, sizes, ROOM, seed)
    packed = sequences(packs)
    assert sorted(itertools.chain(*packed)) == names.tolist()
    left = sorted(ROOM - sum(lengths[piece - 100] for piece in each) for each in packed)
    assert left == best_fit_decreasing(lengths, ROOM)
    assert sequences(pack(names, sizes, ROOM, seed)) == packed


def test_another_seed_is_another_order():
    sizes = numpy.full(40, 4)
    assert sequences(pack(numpy.arange(40), sizes, ROOM, 1)) != sequences(
        pack(numpy.arange(40), sizes, ROOM, 2)
    )


@given(lengths=LENGTHS, seed=st.integers(0, 9))
def test_an_epoch_has_every_token_once_and_cuts_nothing_that_fits(lengths, seed):
    pieces = Pieces(numpy.array(lengths), ROOM)
    for packs in itertools.islice(rounds(pieces, seed), 2):
        tokens = []
        for sequence in sequences(packs):
            taken = 0
            for piece in sequence:
                document = int(numpy.searchsorted(pieces.first, piece, side="right")) - 1
                offset = (piece - int(pieces.first[document])) * ROOM
                length = min(ROOM, lengths[document] - offset)
                assert lengths[document] > ROOM or (offset, length) == (0, lengths[document])
                tokens += [(document, offset + i) for i in range(length)]
                taken += length
            assert 0 < taken <= ROOM
        assert sorted(tokens) == [(d, i) for d, n in enumerate(lengths) for i in range(n)]


@settings(deadline=None)
@given(
    long=st.lists(st.integers(8, 40), min_size=1, max_size=20),
    short=st.lists(st.integers(1, 7), min_size=1, max_size=40),
    share=st.sampled_from([0.1, 0.25, 0.5, 0.75, 0.9]),
    seed=st.integers(0, 3),
)
def test_long_documents_have_their_share(long, short, share, seed):
    lengths = numpy.array([*long, *short])
    pieces = Pieces(lengths, ROOM)
    of_long = of_all = 0
    read = numpy.zeros(pieces.first[-1], int)
    for number, packs in enumerate(itertools.islice(rounds(pieces, seed, LongShare(share, 8)), 3)):
        documents = numpy.searchsorted(pieces.first, packs.pieces, side="right") - 1
        offsets = (packs.pieces - pieces.first[documents]) * ROOM
        tokens = numpy.minimum(ROOM, lengths[documents] - offsets)
        of_long += tokens[documents < len(long)].sum()
        of_all += tokens.sum()
        numpy.add.at(read, packs.pieces, 1)
        # Where the rows are cut a document may stand on either side.
        assert abs(of_long - share * of_all) <= 40 + 7
        assert of_all >= (number + 1) * 99 * ROOM
    # No document is read twice more than another of its class.
    for kind in (read[: pieces.first[len(long)]], read[pieces.first[len(long)] :]):
        assert kind.max() - kind.min() <= 1


@pytest.mark.parametrize(("share", "kind"), [(0.0, "short"), (1.0, "long")])
def test_one_kind_alone(share, kind):
    lengths = numpy.array([12, 12, 3, 3])
    packs = next(rounds(Pieces(lengths, ROOM), 1, LongShare(share, 8)))
    assert {"short" if piece >= 2 else "long" for piece in packs.pieces} == {kind}
