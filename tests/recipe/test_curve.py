"""Curves and the batch schedule: what they evaluate to, and what they refuse."""

import math
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3_plugin.recipe.amounts import (
    Epochs,
    Share,
    Steps,
    format_tokens,
    parse_extent,
    parse_tokens,
)
from dsv3_plugin.recipe.batch_schedule import BatchSchedule, batch_schedule
from dsv3_plugin.recipe.curve import Curve, Piece, resolve


def curve_of(*pieces: dict, tokens_after=None, epochs=None, budget=None) -> Curve:
    return resolve([Piece.model_validate(piece) for piece in pieces], tokens_after, epochs, budget)


@st.composite
def written_curves(draw) -> list[dict]:
    """Random legal pieces, values of every sign, the last one open or closed."""
    values = st.floats(-1e3, 1e3)
    pieces = []
    count = draw(st.integers(1, 5))
    for number in range(count):
        shape = draw(st.sampled_from(["linear", "constant", "cosine"]))
        piece = {shape: draw(values), "for": draw(st.integers(1, 10**12))}
        if shape != "constant" and (number == 0 or draw(st.booleans())):
            piece["from"] = draw(values)
        if shape == "constant" and number == count - 1 and draw(st.booleans()):
            del piece["for"]
        pieces.append(piece)
    return pieces


@given(written_curves(), st.integers(0, 10**13))
def test_values_stay_between_the_ends_of_their_piece(pieces, tokens):
    curve = curve_of(*pieces)
    value = curve(tokens)
    for segment in curve.segments:
        if segment.start <= tokens and (segment.end is None or tokens < segment.end):
            low, high = sorted((segment.first, segment.last))
            assert low - 1e-9 <= value <= high + 1e-9
            break
    else:
        assert value == curve.segments[-1].last
    assert curve.minimum - 1e-9 <= value <= curve.maximum + 1e-9


@given(written_curves())
def test_pieces_begin_and_end_exactly_where_written(pieces):
    curve = curve_of(*pieces)
    for segment, piece in zip(curve.segments, pieces, strict=True):
        if segment.shape == "constant":
            assert curve(segment.start) == piece["constant"]
        else:
            assert curve(segment.start) == segment.first
            assert segment(segment.end) == segment.last == piece[segment.shape]


@given(written_curves())
def test_pieces_are_monotone(pieces):
    for segment in curve_of(*pieces).segments:
        if segment.end is None:
            continue
        step = max(1, (segment.end - segment.start) // 50)
        values = [segment(at) for at in range(segment.start, segment.end, step)]
        ordered = sorted(values, reverse=segment.last < segment.first)
        assert values == pytest.approx(ordered, abs=1e-9)


@given(written_curves())
def test_until_and_for_say_the_same(pieces):
    position, absolute = 0, []
    for piece in pieces:
        piece = dict(piece)
        if "for" in piece:
            position += piece.pop("for")
            piece["until"] = position
        absolute.append(piece)
    assert curve_of(*absolute) == curve_of(*pieces)


def test_cosine_is_half_a_wave():
    curve = curve_of({"cosine": 2.0, "from": 10.0, "for": 100})
    for tokens in range(0, 101, 10):
        expected = 2.0 + 8.0 * (1 + math.cos(math.pi * tokens / 100)) / 2
        assert curve(tokens) == pytest.approx(expected, rel=1e-12)
    assert curve(10**9) == 2.0


def test_steps_are_walked_through_the_batch_schedule():
    schedule = BatchSchedule(((0, 2), (40, 4)), seq_length=4)
    # 5 steps of 8 tokens reach the change at 40; 3 more take 16 each.
    assert schedule.tokens_after(0, 5) == 40
    assert schedule.tokens_after(0, 8) == 88
    curve = curve_of(
        {"linear": 1.0, "from": 0.0, "for": "5 steps"},
        {"constant": 1.0, "for": "3 steps"},
        {"constant": 0.5},
        tokens_after=schedule.tokens_after,
    )
    assert curve.boundaries == [0, 40, 88]


BY_SHARES = (
    {"linear": 1.0, "from": 0.0, "for": "12.5%"},
    {"constant": 1.0, "until": "75%"},
    {"cosine": 0.1, "for": "25%"},
)


@pytest.mark.parametrize(
    ("budget", "boundaries"),
    [
        (1000, [0, 125, 750, 1000]),
        (Steps(80), [0, 100, 600, 800]),  # of ten tokens each
        (Steps(3), [0, 0, 20, 30]),  # too short for the first
        (Epochs(2), [0, 500, 3000, 4000]),
    ],
)
def test_shares_are_of_the_whole_run(budget, boundaries):
    curve = curve_of(
        *BY_SHARES,
        tokens_after=BatchSchedule(((0, 2),), seq_length=5).tokens_after,
        epochs=lambda number: 2000 * number,
        budget=budget,
    )
    assert curve.boundaries == boundaries
    assert curve(0) == (0.0 if boundaries[1] else 1.0)
    assert curve(boundaries[-1]) == 0.1


def test_a_run_of_steps_cannot_share_out_its_own_batch_size():
    with pytest.raises(
        ValueError, match=r"piece 1: '12\.5% of 80 steps' would need the batch size"
    ):
        curve_of(*BY_SHARES, budget=Steps(80))


@pytest.mark.parametrize("text", ["101%", "%", "-5%", "1e1%", "10 %%", "10% tokens"])
def test_shares_that_are_none(text):
    with pytest.raises(ValueError, match=r"not an amount|more than the whole run"):
        parse_extent(text)


@pytest.mark.parametrize(
    ("text", "way_out"),
    [
        (0.1, "write 10% for that share of the run"),
        ("100 percent", "write 100% for that share of the run"),
        ("150%", "write 100% or less of it"),
        ("-10%", "a share of the run is written 10%"),
    ],
)
def test_how_a_share_is_written_is_said(text, way_out):
    with pytest.raises(ValueError, match=way_out):
        parse_extent(text)


@given(st.decimals(0, 100, places=6))
def test_written_shares_read_back(percent):
    share = parse_extent(f"{percent:f}%")
    assert isinstance(share, Share)
    assert share * 100 == Fraction(percent)
    assert parse_extent(str(share)) == share


@pytest.mark.parametrize(
    ("pieces", "sentence"),
    [
        ([{"linear": 1.0, "for": 5}], "piece 1: the first piece needs from"),
        ([{"constant": 1.0}, {"constant": 2.0}], "piece 1: only the last piece may lack"),
        ([{"constant": 1.0, "until": 5}, {"constant": 2.0, "until": 5}], "piece 2: ends at 5"),
        ([{"linear": 1.0, "from": 0.0}], "piece 1: a linear piece needs until or for"),
        ([{"constant": 1.0, "for": "5 steps"}], "would need the batch size that this curve"),
        ([{"constant": 1.0, "linear": 1.0}], "exactly one of linear, constant and cosine"),
        ([{"constant": 1.0, "from": 1.0}], "a constant piece has no from"),
        ([{"constant": 1.0, "for": 1, "until": 1}], "until or for, not both"),
    ],
)
def test_curves_that_make_no_sense(pieces, sentence):
    with pytest.raises(ValueError, match=sentence):
        curve_of(*pieces)


@given(
    multiple=st.integers(1, 24),
    seq_length=st.integers(1, 64),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    lengths=st.lists(st.integers(1, 5000), min_size=4, max_size=4),
    shapes=st.lists(st.sampled_from(["linear", "cosine", "constant"]), min_size=4, max_size=4),
)
def test_batch_schedule_follows_the_curve(multiple, seq_length, sizes, lengths, shapes):
    pieces = []
    for number, size in enumerate(sizes):
        piece = {shapes[number]: float(size * multiple), "for": lengths[number]}
        if number == 0 and shapes[0] != "constant":
            piece["from"] = float(multiple)
        pieces.append(piece)
    curve = curve_of(*pieces)
    schedule = batch_schedule(curve, multiple, seq_length)
    starts = [start for start, _ in schedule.entries]
    assert starts == sorted(set(starts))
    assert starts[0] == 0
    for tokens in range(0, sum(lengths) + 2 * seq_length, seq_length):
        batch = schedule.batch(tokens)
        assert batch % multiple == 0
        assert batch >= multiple
        # The largest multiple that the curve allows; a hair of forgiveness for its arithmetic.
        assert batch <= curve(tokens) + 1e-6 * multiple
        assert batch + multiple > curve(tokens) - 1e-6 * multiple


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 9)), min_size=1, max_size=5),
    st.integers(1, 16),
    st.integers(0, 200),
    st.integers(0, 5000),
)
def test_walking_a_schedule_equals_stepping_it(changes, seq_length, steps, tokens):
    position, entries = 0, []
    for length, batch in changes:
        entries.append((position * seq_length, batch))
        position += length
    schedule = BatchSchedule(tuple(entries), seq_length)
    at = 0
    for _ in range(steps):
        at += schedule.batch(at) * seq_length
    assert schedule.tokens_after(0, steps) == at
    at = count = 0
    while at < tokens:
        at += schedule.batch(at) * seq_length
        count += 1
    assert schedule.steps_until(tokens) == count


@pytest.mark.parametrize("size", [10.0, 4.0])
def test_batch_that_ranks_cannot_share_is_refused(size):
    with pytest.raises(ValueError, match=rf"batch size {size:g} is not a multiple of 8"):
        batch_schedule(Curve.constant(size), 8, 16)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("1 token", 1),
        ("14.8T", 14_800_000_000_000), ("469B", 469 * 10**9), ("1.5M", 1_500_000), ("3k", 3000),
        (1.5e6, 1_500_000),
        (17, 17), ("17 tokens", 17), ("4.3 T", 4_300_000_000_000),
    ],
)  # fmt: skip
def test_token_amounts(text, tokens):
    assert parse_tokens(text) == tokens


def test_steps_are_told_from_tokens():
    assert parse_extent("2K steps") == 2000
    assert isinstance(parse_extent("2K steps"), Steps)
    with pytest.raises(ValueError, match=r"where tokens are meant: training.steps takes 2000"):
        parse_tokens("2000 steps")
    with pytest.raises(ValueError, match="is a share where tokens are meant"):
        parse_tokens("10%")


@pytest.mark.parametrize("text", ["", "T", "3X", "1.5", "-3", -3, True, None, "3 weeks", 1.5])
def test_amounts_that_are_none(text):
    with pytest.raises(ValueError, match=r"not an amount|not a whole number|negative"):
        parse_tokens(text)


@given(st.integers(0, 10**15))
def test_written_amounts_read_back(tokens):
    assert parse_tokens(format_tokens(tokens)) == tokens


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ("18 steps", "ends at step 18, and the piece before at step 20: give it a later until, or"),
        ("60%", "ends at step 18 (60% of 30 steps), and the piece before at step 20: give the run"),
        ("1K", "ends at 1,000 tokens, and the piece before at 81,920: give it a later until, or"),
    ],
)
def test_a_piece_that_ends_too_early_is_told_so_in_its_own_unit(second, said):
    pieces = [{"linear": 1, "from": 0, "for": "20 steps"}, {"constant": 1, "until": second}]
    written = [Piece.model_validate(piece) for piece in pieces]
    with pytest.raises(ValueError, match=re.escape(f"piece 2: {said}")):
        resolve(written, lambda start, steps: start + steps * 4096, budget=Steps(30))
