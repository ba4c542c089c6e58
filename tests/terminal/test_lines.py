"""What a file or a user chose is shown, and whatever takes the lines may go away."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dsv3_plugin
from dsv3_plugin.errors import UserError, printable
from dsv3_plugin.terminal import lines

PACKAGE = Path(dsv3_plugin.__file__).parent


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("run[exp1] #2 → γ.yaml", "run[exp1] #2 → γ.yaml"),
        ("a\nall good", r"a\nall good"),
        ("\x1b[2Kall good\r", r"\x1b[2Kall good\r"),
        ("a\u2028b\x85c\u202edoog\u200b", r"a\u2028b\x85c\u202edoog\u200b"),
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
        ("\ud800", r"\ud800"),
        ("日本　語\xa0", "日本　語\xa0"),
    ],
)
def test_a_text_shows_itself(text, shown):
    assert printable(text) == shown
    assert str(UserError(text)) == shown
    assert shown.isascii() or printable(shown) == shown


def test_a_line_is_one_line(capsys):
    lines.say("name\nall good")
    lines.note("\x1b]0;title\x07")
    assert capsys.readouterr() == ("name\\nall good\n", "\\x1b]0;title\\x07\n")


class Terminal:
    """Standard output that is a terminal."""

    def __init__(self):
        self.text = ""

    def isatty(self):
        return True

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_a_text_keeps_its_lines_but_moves_no_cursor(monkeypatch, capsys):
    lines.show_text("def f():\n\treturn '\x1b[1m'\n")
    assert capsys.readouterr().out == "def f():\n\treturn '\x1b[1m'\n"
    monkeypatch.setattr(sys, "stdout", Terminal())
    lines.show_text("def f():\n\treturn '\x1b[1m'\n")
    assert sys.stdout.text == "def f():\n\treturn '\\x1b[1m'\n"


def test_nothing_else_writes_to_the_terminal():
    """So that no verb of the future forgets it."""
    own = {PACKAGE / "terminal" / "lines.py", PACKAGE / "terminal" / "console.py"}
    # What argparse's kin make of --help, and pages that are written by redirection.
    own |= {PACKAGE / "cli" / "command.py", *PACKAGE.glob("*/reference.py")}
    found = {
        str(path.relative_to(PACKAGE))
        for path in {*PACKAGE.rglob("*.py")} - own
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if _writes(node)
    }
    # A rank under torchrun tells things on the standard error it was given.
    assert found == {"distributed/messages.py"}


def _writes(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return getattr(node.func, "id", None) == "print"
    names = {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else set()
    return bool(names & {"print", "Console"}) and node.module.startswith("rich")


def ended(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    dsv3 = f"{sys.executable} -m dsv3_plugin.cli"
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command.replace('dsv3', dsv3)}"],
        capture_output=True, text=True, env={**os.environ, **variables},
        errors="replace", check=False,
    )  # fmt: skip


@pytest.mark.parametrize("verb", ["plan deepseek-v3", "args pretrain/tiny", "--help"])
def test_a_reader_that_leaves_ends_a_verb_quietly(verb):
    done = ended(f"dsv3 {verb} | true")
    assert (done.returncode, done.stderr) in ((141, ""), (0, ""))  # 0: all was written by then


def test_a_full_disk_under_the_output_is_a_sentence():
    done = ended("dsv3 plan tiny > /dev/full")
    assert done.returncode == 2
    sentence = "dsv3: standard output cannot be written (No space left on device).\n"
    assert done.stderr == sentence
    assert ended("dsv3 plan tiny >&- 2>&-").returncode == 0
    assert ended("dsv3 plan nothing 2> /dev/full").returncode == 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_any_encoding_takes_any_name(encoding):
    variables = {"PYTHONIOENCODING": encoding, "LC_ALL": "C", "PYTHONUTF8": "0"}
    done = ended("dsv3 plan $'\\u03b3\\xff\\nall good'", **variables)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "\\nall good' is neither" in done.stderr
    done = ended("dsv3 args pretrain/tiny $'name=\\u2192\\u03b3'", **variables)
    assert done.returncode in (0, 2)
    assert "unexpected" not in done.stderr
    assert ended("dsv3 plan tiny", **variables).returncode == 0


def test_numbers_that_json_lacks_are_null(capsys):
    lines.say_json(
        {"loss": float("nan"), "worst": [1.5, float("-inf")], "at": (2, None), "is": True}
    )
    assert (
        capsys.readouterr().out
        == '{"loss": null, "worst": [1.5, null], "at": [2, null], "is": true}\n'
    )
