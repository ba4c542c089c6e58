"""Prompts that several members of a mixture have."""

from dsv3_plugin.data.chat.conversation import Conversation
from dsv3_plugin.rollouts.asked import Asked
from dsv3_plugin.rollouts.prompts import Prompt
from dsv3_plugin.training.prompts import asked_twice


def asked(*texts: str) -> list[Asked]:
    turns = ([{"role": "user", "content": text}] for text in texts)
    prompts = (Prompt(Conversation(each), 1, ("match",), {}, "here") for each in turns)
    return [Asked(prompt, "", (1,), "") for prompt in prompts]


def test_what_two_members_have_is_counted_and_said() -> None:
    members = [asked("a", "b", "c"), asked("c", "d"), asked("a", "c", "d", "e")]
    assert [*asked_twice(["one", "two", "three"], members)] == [
        "Asked of two and of one as well: 1 prompt.",
        "Asked of three and of one as well: 2 prompts.",
        "Asked of three and of two as well: 1 prompt.",
    ]
    assert not [*asked_twice(["one", "two"], [asked("a"), asked("b")])]
