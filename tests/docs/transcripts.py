"""Commands on a page with what they print below them: held against what they do print.

A block of shell with one command, then a block of text: that is a transcript. What a line of `…`
stands for is left out. `python -m tests.docs.transcripts docs/planner.md` writes them anew.
"""

import io
import re
import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path
from unittest import mock

import pytest

from dsv3_plugin import cli

_TRANSCRIPT = re.compile(r"(^```\n(dsv3 [^\n]*)\n```\n\n```text\n)(.*?)(^```$)", re.M | re.S)
LEFT_OUT = "…"


def transcripts(text: str) -> list[tuple[str, str]]:
    """(command, what the page says it prints)."""
    return [(match[2], match[3]) for match in _TRANSCRIPT.finditer(text)]


def printed(command: str) -> str:
    """What a command prints, without blanks at the ends of lines."""
    out = io.StringIO()
    arguments = mock.patch.object(sys, "argv", shlex.split(command))
    with arguments, redirect_stdout(out), pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code, command
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def is_shown(shown: str, whole: str) -> bool:
    """Whether a text is the whole but for what its lines of `…` stand for."""
    parts = shown.split(f"{LEFT_OUT}\n")
    pattern = ".*".join(map(re.escape, parts))
    return re.fullmatch(pattern, whole, re.DOTALL) is not None


def main() -> None:
    """Write the transcripts of a page anew, whole."""
    page = Path(sys.argv[1])
    text = page.read_text(encoding="utf-8")
    text = _TRANSCRIPT.sub(lambda match: f"{match[1]}{printed(match[2])}{match[4]}", text)
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
