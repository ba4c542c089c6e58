"""Thinking told apart from the answer, whatever pieces it comes in."""

import pytest

from dsv3_plugin.inference.server.thinking import Thinking


def split(thinking, pieces):
    parts = [thinking.add(piece) for piece in pieces] + [thinking.end()]
    return "".join(thought for thought, _ in parts), "".join(said for _, said in parts)


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize(
    ("prompt", "text", "expected"),
    [
        ("ask", "<think>two < 3</think>\n\nyes", ("two < 3", "yes")),
        ("ask<think>\n", "so</think>yes </think>", ("so", "yes </think>")),
        ("ask", "no <think>thing</think>", ("", "no <think>thing</think>")),
        ("ask", "<thin", ("", "<thin")),
        ("ask", "<think>cut of</thi", ("cut of</thi", "")),
        ("ask", "", ("", "")),
    ],
)
def test_split(prompt, text, expected, size):
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    assert split(Thinking.behind(prompt), pieces) == expected
