"""Of what goes on for pages, the sentence that matters."""

import pytest

from dsv3_plugin.rehearsal.sentence import sentence_of

LONG = "word " * 100


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Use one of\n  these two.", "Use one of these two"),
        ("Two are short. Both stay.", "Two are short. Both stay"),
        (f"This ends. And {LONG}", "This ends"),
        (f"Is 1.5 e.g. more? It is ... {LONG}", "Is 1.5 e.g. more"),
        (LONG, "word " * 48 + "…"),
        ("", ""),
    ],
)
def test_the_sentence_of(text: str, sentence: str) -> None:
    assert sentence_of(text) == sentence
