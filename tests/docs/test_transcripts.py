"""What pages say that commands print is what they print."""

import pytest

from tests.docs.pages import PAGES
from tests.docs.transcripts import is_shown, printed, transcripts

SHOWN = [(page, *shown) for page in PAGES for shown in transcripts(page.text)]


@pytest.mark.parametrize(
    ("page", "command", "text"), [pytest.param(*s, id=f"{s[0].name}: {s[1]}") for s in SHOWN]
)
def test_a_transcript_is_what_the_command_prints(page, command, text):
    assert is_shown(text, printed(command)), (
        f"{page.name} is stale: python -m tests.docs.transcripts {page.name}"
    )


def test_there_are_some():
    assert len(SHOWN) >= 2


def test_what_is_left_out_is_what_the_dots_stand_for():
    assert is_shown("a\n…\nc\n", "a\nb\nb\nc\n")
    assert is_shown("a\nb\n…\n", "a\nb\nc\n")
    assert not is_shown("a\n…\nc\n", "a\nb\nc\nd\n")
    assert not is_shown("a\nc\n", "a\nb\nc\n")
