"""Text in pieces: together they are the whole, and none has to be taken back."""

from hypothesis import given
from hypothesis import strategies as st

from dsv3_plugin.inference.text import TextStream

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
