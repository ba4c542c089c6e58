"""Sums of rewards, and rewards of form."""

from dsv3_plugin.rewards.forms import in_script, tags, within
from dsv3_plugin.rewards.verdict import Attempt, Judged, Verdict, Weighted, judged


def test_a_sum_is_weighted_and_capped_and_lost_with_one_of_its_parts() -> None:
    def lengths(attempts):
        return [Verdict(float(len(a.text)) if a.text else None, "nothing") for a in attempts]

    def ones(attempts):
        return [Verdict(1.0) for _ in attempts]

    rewards = [Weighted("length", lengths, 0.5, (0, 4)), Weighted("one", ones, 2.0)]
    found = judged([Attempt("", "abc"), Attempt("", "abcdef"), Attempt("", "")], rewards)
    assert [one.total for one in found] == [3.5, 4.0, None]
    assert isinstance(found[2], Judged)
    assert found[2].problems == {"length": "nothing"}


def test_tags_are_wanted_once_each_and_the_templates_count() -> None:
    good = "<think>1 + 1</think>\n<answer>2</answer>"
    attempts = [
        Attempt("", good),
        Attempt("", "1 + 1</think><answer>2</answer>", opened="<think>\n"),
        Attempt("", "1 + 1</think><answer>2</answer>"),
        Attempt("", good + "!"),
        Attempt("", good, opened="<think>\n"),
        Attempt("", "<think>a</think><think>b</think><answer>2</answer>"),
        Attempt("", "<answer>2</answer><think>a</think>"),
    ]
    assert [verdict.value for verdict in tags(attempts)] == [1, 1, 0, 0, 0, 0, 0]


def test_length_and_language() -> None:
    attempts = [Attempt("", "ab", tokens=6), Attempt("", "ab你们", tokens=8), Attempt("", "12")]
    assert [v.value for v in within(10, 4)(attempts)] == [0, -0.5, 0]
    assert [v.value for v in in_script("LATIN")(attempts)] == [1, 0.5, 1]
    assert [v.value for v in in_script("latin")(attempts)] == [1, 0.5, 1]
    assert [v.value for v in in_script("CJK")(attempts)] == [0, 0.5, 1]
