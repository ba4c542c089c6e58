"""What an answer comes to: answers in different words are one answer."""

import pytest

from dsv3_plugin.rewards.conclusion import conclusion
from dsv3_plugin.rewards.verdict import Attempt


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"<think>\boxed{7}</think>So it is \boxed{42}.", "42"),
        (r"First \boxed{1}, then \boxed{ \frac{1}{2} }", r"\frac{1}{2}"),
        (r"<think>a</think><answer> \boxed{42} </answer>", "42"),
        ("<think>a</think> <answer> larger </answer> that is it", "larger"),
        (" 42 \n", "42"),
        ("<think>never ends", ""),
    ],
)
def test_it_is_what_is_marked(text, expected):
    assert conclusion(Attempt("", text)) == expected
