"""Answers become rewards and advantages, those of one prompt beside each other."""

from types import SimpleNamespace

import pytest

from dsv3_plugin.data.chat.conversation import Conversation
from dsv3_plugin.recipe.rl import Reward
from dsv3_plugin.rollouts.asked import Asked
from dsv3_plugin.rollouts.groups import Group, advantages, scored
from dsv3_plugin.rollouts.judging import Judging
from dsv3_plugin.rollouts.prompts import Prompt
from dsv3_plugin.rollouts.rollout import Rollout

END = 0
WORDS = SimpleNamespace(decode=lambda tokens: " ".join(map(str, tokens)))
"""A tokenizer whose tokens are written as numbers."""


def answered(*tokens: int) -> Rollout:
    ended = "stop" if tokens[-1] == END else "length"
    return Rollout((1, 2), tokens, (-1.0,) * len(tokens), ended, (0,) * len(tokens))


def asked(expected: object, *rewards: str, opened: str = "") -> Asked:
    return Asked(Prompt(Conversation([]), expected, rewards, {}, "here"), "?", (1, 2), opened)


def groups(*answers: list[Rollout], expected: object = 5) -> list[Group]:
    rewards = {"match": Reward(), "length": Reward(weight=0.5, margin=4)}
    prompts = [asked(expected, "match", "length") for _ in answers]
    with Judging(rewards, 6) as judging:
        return scored(prompts, answers, WORDS, frozenset({END}), judging)


def test_what_ends_an_answer_is_no_part_of_its_text() -> None:
    [group] = groups([answered(5, END), answered(5, 6, 7, 8, 9, 1)])
    first, second = group.answers
    assert (first.text, first.reward, first.passed, first.truncated) == ("5", 1.0, True, False)
    assert (second.passed, second.truncated) == (False, True)
    assert second.reward == pytest.approx(0.5 * -1.0)
    assert dict(second.parts) == {"match": 0.0, "length": -1.0}


def test_advantages_are_of_the_group() -> None:
    found = groups([answered(5, END), answered(4, END), answered(4, END)], [answered(5, END)] * 3)
    assert [group.tells_apart for group in found] == [True, False]
    told, silent = advantages(found, "group")
    deviation = (((2 / 3) ** 2 + 2 * (1 / 3) ** 2) / 2) ** 0.5
    assert told == pytest.approx([2 / 3 / deviation, *[-1 / 3 / deviation] * 2], abs=1e-5)
    assert silent == [0.0] * 3


def test_what_cannot_be_judged_costs_itself_alone() -> None:
    [group] = groups([answered(5, END), answered(4, END)], expected=None)
    assert [answer.reward for answer in group.answers] == [None, None]
    assert "no answer to compare with" in group.answers[0].problems["match"]
    assert advantages([group], "group") == [[0.0, 0.0]]


def test_a_group_may_have_lost_answers() -> None:
    found = groups([answered(5, END)], [answered(5, END), answered(4, END)], [])
    assert [len(row) for row in advantages(found, "none")] == [1, 2, 0]
    assert advantages(found, "none")[1] == [0.5, -0.5]
    assert [group.tells_apart for group in found] == [False, True, False]


def test_thoughts_that_the_template_begins_are_part_of_the_form() -> None:
    with Judging({"format": Reward()}, 99) as judging:
        said = SimpleNamespace(
            decode=lambda tokens: "so</think><answer>5</answer>" if tokens else ""
        )
        [group] = scored(
            [asked(None, "format", opened="<think>\n")], [[answered(7, END)]], said,
            frozenset({END}), judging,
        )  # fmt: skip
    assert group.answers[0].reward == 1.0
    assert group.answers[0].said == "5"
