"""Prompts: as long as was asked for, each sentence a line of its own where it belongs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3_plugin.errors import UserError
from dsv3_plugin.evaluation.haystack import Haystack


class Letters:
    """A tokenizer whose tokens are letters."""

    def encode(self, text):
        return [ord(letter) for letter in text]

    def decode(self, tokens):
        return "".join(map(chr, tokens))


def haystack(text, begin=()):
    return Haystack("the text", Letters().encode(text), Letters(), begin)


LINES = "".join(f"{number:03} of the lines\n" for number in range(100))


def text_of(tokens):
    return Letters().decode(tokens)


@given(
    length=st.integers(60, 1500),
    start=st.floats(0, 1),
    depths=st.lists(st.floats(0, 1), max_size=3),
)
def test_a_prompt_is_as_long_as_asked_and_holds_all_lines(length, start, depths):
    sentences = [(depth, f"fact {n}.") for n, depth in enumerate(depths)]
    prompt = haystack(LINES).prompt(start, length, sentences, "fact 0 is", " so.")
    text = text_of(prompt)
    # A line's end is spared before each line at most, where there is one.
    assert length - len(sentences) - 1 <= len(prompt) + len(" so.") <= length
    *lines, question = text.split("\n")
    assert question == "fact 0 is"
    assert sorted(line for line in lines if line.startswith("fact")) == sorted(
        sentence for _, sentence in sentences
    )


@pytest.mark.parametrize("depth", [0, 0.25, 0.5, 0.75, 1])
def test_a_sentence_is_at_its_depth(depth):
    text = text_of(haystack(LINES).prompt(0.3, 1200, [(depth, "fact.")], "q", " a."))
    where = text.index("fact.\n") / (len(text) - len("fact.\n\nq"))
    assert where == pytest.approx(depth, abs=17 / 1200)  # a line of the text is 17 letters


def test_text_without_line_ends_gets_lines_of_its_own():
    text = text_of(haystack("x" * 500).prompt(0, 200, [(0.5, "fact.")], "q", " a."))
    assert "x\nfact.\n" in text or text.startswith("fact.\n")
    assert text.endswith("\nq")


def test_every_text_begins_as_its_tokenizer_wants():
    prompt = haystack(LINES, begin=(7,)).prompt(0.5, 100, [(0, "fact.")], "q", " a.")
    assert prompt[0] == 7
    assert text_of(prompt[1:]).startswith("fact.\n")
    assert len(prompt) <= 97


def test_what_does_not_fit_is_refused_with_what_it_needs():
    needed = len("\nfact.\n" + "\nq" + " a.")
    haystack(LINES).prompt(0, needed, [(0, "fact.")], "q", " a.")
    with pytest.raises(UserError, match=f"which are {needed}: ask longer texts, or fewer"):
        haystack(LINES).prompt(0, needed - 1, [(0, "fact.")], "q", " a.")


def test_too_little_text_is_refused_with_what_there_is():
    with pytest.raises(UserError, match="the text has 20 tokens, and 86 of real text are needed"):
        haystack("x" * 20).prompt(0, 98, [(0, "fact.")], "q", " a.")
