"""Text in pieces: together they are the whole, and none has to be taken back."""

from hypothesis import given
from hypothesis import strategies as st

from dsv3_plugin.inference.text import GrowingText, TextStream

TEXTS = st.lists(st.sampled_from(["a", "b", "é", "🙂", "ab", " "]), max_size=12)


def decode(tokens):
    """One byte a token, as a byte-level tokenizer at its worst."""
    return bytes(tokens).decode("utf-8", "replace")


@given(TEXTS, st.sampled_from([(), ("ab",), ("aab", "b ")]))
def test_pieces_are_the_text_up_to_its_stop_string(parts, stop):
    whole = "".join(parts)
    stream, shown = TextStream(decode, stop), ""
    for byte in whole.encode():
        shown += stream.add([byte])
        assert "\ufffd" not in shown
        assert not any(end in shown for end in stop)
    shown += stream.end()
    ends = [whole.find(end) for end in stop if end in whole]
    assert shown == (whole[: min(ends)] if ends else whole)


def test_what_never_became_a_character_is_shown_in_the_end():
    stream = TextStream(decode)
    assert stream.add([65, 0xF0, 0x9F]) == "A"
    assert stream.end() == "\ufffd"


def test_stop_tokens_are_not_part_of_the_text():
    stream = TextStream(decode, stop_tokens={67})
    assert stream.add([65, 66, 67]) + stream.end() == "AB"


def spelled(tokens):
    """As SentencePiece: words with the space before them, but for a text's first; 0 is special."""
    return "".join(" " + "ab"[token % 2] * token for token in tokens if token).removeprefix(" ")


@given(st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=8))
def test_a_growing_text_is_the_text_of_its_tokens(pieces):
    growing, tokens = GrowingText(spelled), []
    for piece in pieces:
        growing.add(piece)
        tokens += piece
        assert growing.text == spelled(tokens)


@given(st.lists(st.binary(max_size=5), max_size=8))
def test_bytes_that_are_no_text_too(pieces):
    growing = GrowingText(decode)
    for piece in pieces:
        growing.add(list(piece))
    whole = b"".join(pieces)
    assert growing.text == decode(whole)
    assert growing.text.startswith(growing.settled)


def test_a_token_costs_as_much_at_the_end_of_a_long_text():
    decoded = []

    def counted(tokens):
        decoded.append(len(tokens))
        return decode(tokens)

    stream = TextStream(counted, ("never",))
    for byte in ("€uro " * 500).encode():
        stream.add([byte])
    assert max(decoded) <= 8
