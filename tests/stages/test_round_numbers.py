"""What is told of answers to held-out prompts, by hand."""

from dsv3_plugin.rollouts.groups import Group, Scored
from dsv3_plugin.rollouts.rollout import Rollout
from dsv3_plugin.stages.round_numbers import of_held_out


def group(*said: str, right: str = "7") -> Group:
    rollout = Rollout((1,), (2,), (-1.0,), "stop", (0,))
    answers = (
        Scored(rollout, text, float(text == right), {}, {}, text == right, text) for text in said
    )
    return Group("?", right, "here", tuple(answers))


def test_one_several_and_the_commonest_of_them() -> None:
    found = of_held_out(
        [
            group("7", "7", "8", "9"),  # right in two of four, and by their majority
            group("8", "8", "7", "9"),  # in one, and not by it
            group("9", "8", "7", "6"),  # of as many of each, the first counts
            group("7", "7", "7", "7"),
            group("1", "2", "3", "3"),
        ]
    )
    assert found == {
        "held_out_reward": 8 / 20,
        "held_out_pass_at_1": 8 / 20,
        "held_out_pass_at_4": 4 / 5,
        "held_out_majority": 2 / 5,
    }


def test_of_one_answer_there_is_no_majority() -> None:
    assert of_held_out([group("7"), group("8")]) == {
        "held_out_reward": 0.5, "held_out_pass_at_1": 0.5
    }  # fmt: skip
