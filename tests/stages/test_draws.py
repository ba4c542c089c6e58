"""Prompts are asked again until enough of them tell answers apart, or until their answers end."""

import io
from types import SimpleNamespace

import pytest
import torch

from dsv3_plugin.data.chat.conversation import Conversation
from dsv3_plugin.rollouts.asked import Asked
from dsv3_plugin.rollouts.groups import Group, Scored
from dsv3_plugin.rollouts.prompts import Prompt
from dsv3_plugin.rollouts.rollout import UNFINISHED, Rollout
from dsv3_plugin.stages.draws import Draws
from dsv3_plugin.stages.round_numbers import Costs
from dsv3_plugin.stages.rounds import runs_of


def group(name: int, told_apart: bool) -> Group:
    rollout = Rollout((1,), (2,), (-1.0,), "stop", (0,))
    answers = (
        Scored(rollout, "", reward, {}, {}, False, "") for reward in (0.0, float(told_apart))
    )
    return Group(str(name), "", "", tuple(answers))


def prompt(name: int) -> Asked:
    return Asked(Prompt(Conversation([]), name, (), {}, ""), str(name), (7, name), "")


class Asking:
    """Answers to prompts, which are numbers: those of some tell them apart."""

    def __init__(self, apart: set[int]) -> None:
        self._apart, self._next, self.seeds = apart, 0, []
        self.data = SimpleNamespace(order=lambda recipe: self)
        self.curriculum = None

    def load_state_dict(self, state) -> None:
        pass

    def take(self, number: int) -> list[Asked]:
        self._next += number
        return [prompt(n) for n in range(self._next - number, self._next)]

    def ask(self, model, asked, n, seed, version, begun, most) -> None:
        assert (begun, most) == ([()] * len(asked), None)
        self._asked = asked
        self.seeds.append(seed)

    def asked_for(self) -> tuple[list[Group], Costs]:
        names = [int(one.text) for one in self._asked]
        return [group(name, name in self._apart) for name in names], Costs(seconds=1.0, lost=1)


@pytest.mark.parametrize(
    ("times", "apart", "learned", "asked"),
    [
        (3, {1, 4, 5, 8}, ["1", "4", "5"], 2),  # the second time brings two more, which is enough
        (3, {1, 5}, ["1", "5"], 3),  # there are not three in as many times
        (3, {0, 1, 2, 3}, ["0", "1", "2"], 1),
        (1, {1}, ["0", "1", "2"], 1),  # without it all are learned from
        (2, set(), [], 2),
    ],
)
def test_until_enough_tell_apart(times: int, apart: set, learned: list, asked: int) -> None:
    settings = SimpleNamespace(
        dynamic_sampling=times, prompts=3, n=2, kind="embedded", partial=None
    )
    recipe = SimpleNamespace(rollouts=settings, training=SimpleNamespace(seed=9))
    policy = Asking(apart)
    journal = SimpleNamespace(read=lambda *_: None, keep=lambda *_: None)
    own = Draws(recipe, policy, journal)
    own.begin([], 3, 4)
    drawn = own.take()
    assert [one.prompt for one in drawn.trained] == learned
    assert [one.prompt for one in drawn.groups] == [str(n) for n in range(3 * asked)]
    assert policy.seeds == [(9, 4, number) for number in range(asked)]
    assert (drawn.costs.seconds, drawn.costs.lost, drawn.version) == (asked, asked, 3)


class Slow(Asking):
    """Answers of two tokens a round, whose ends come after as many rounds as a prompt's name has
    digits, of the second answer one later."""

    def __init__(self, apart: set[int] = frozenset()) -> None:
        super().__init__(apart)
        self.given: list[list[str]] = []
        self.data.members = [[prompt(n) for n in range(40)]]

    def state_dict(self) -> dict:
        return {"asked": self._next}

    def load_state_dict(self, state) -> None:
        self._next = state["asked"]

    def ask(self, model, asked, n, seed, version, begun, most) -> None:
        assert most in (2, None)
        self._most = most
        self._asked, self._begun, self._version = asked, begun, version
        self.given.append([one.text for one in asked])

    def asked_for(self) -> tuple[list[Group], Costs]:
        found = []
        for one, own in zip(self._asked, self._begun, strict=True):
            answers = []
            for later, before in enumerate(
                own or [Rollout(one.tokens, (), (), UNFINISHED, ())] * 2
            ):
                if before.unfinished:
                    rounds = len(before.tokens) // 2 + 1
                    ended = rounds == len(one.text) + later or self._most is None
                    more = Rollout(
                        (), (5, 6), (-self._version, -1.0), "stop" if ended else UNFINISHED,
                        (self._version,) * 2,
                    )  # fmt: skip
                    before = before.gone_on(more)
                answers.append(before)
            rewards = (0.0, float(int(one.text) in self._apart))
            if any(answer.unfinished for answer in answers):
                rewards = (None, None)
            scored = (
                Scored(answer, "", reward, {}, {}, False, "")
                for answer, reward in zip(answers, rewards, strict=True)
            )
            found.append(Group(one.text, one.text, "", tuple(scored)))
        return found, Costs()


def slow(policy: Slow, partial: int | None = 2, times: int = 1) -> Draws:
    settings = SimpleNamespace(
        dynamic_sampling=times, prompts=4, n=2, kind="embedded", partial=partial
    )
    recipe = SimpleNamespace(rollouts=settings, training=SimpleNamespace(seed=9))
    return Draws(recipe, policy, SimpleNamespace(read=lambda *_: None, keep=lambda *_: None))


def gone_on_with(own: Draws, other: Draws) -> Draws:
    """By another, from what a checkpoint has."""
    state = io.BytesIO()
    torch.save(own.state_dict(), state)
    state.seek(0)
    other.load_state_dict(torch.load(state, weights_only=True))
    return other


def test_answers_without_an_end_are_gone_on_with_by_the_next_weights() -> None:
    policy = Slow()
    own = slow(policy)
    own.load_state_dict({"asked": 8})
    drawn = []
    for step in range(1, 5):
        if step == 3:
            own = gone_on_with(own, slow(policy))
        own.begin([], step - 1, step)
        drawn.append(own.take())
    assert policy.given == [
        ["8", "9", "10", "11"],
        ["8", "9", "10", "11"],
        ["10", "11", "12", "13"],
        ["12", "13", "14", "15"],
    ]
    assert [[one.prompt for one in each.trained] for each in drawn] == [
        [], ["8", "9"], ["10", "11"], []
    ]  # fmt: skip
    assert [each.unfinished for each in drawn] == [6, 2, 4, 6]
    assert [each.made for each in drawn] == [16, 12, 12, 16]
    assert [each.oldest for each in drawn] == [0, 0, 0, 3]
    first, second = (answer.rollout for answer in drawn[2].trained[0].answers)
    assert (first.versions, second.versions) == ((0, 0, 1, 1), (0, 0, 1, 1, 2, 2))
    assert second.log_probs == (0, -1.0, -1, -1.0, -2, -1.0)
    assert first.prompt == second.prompt == (7, 10)
    assert runs_of(second.versions) == [[0, 2], [1, 2], [2, 2]]


def test_who_goes_on_without_it_ends_what_is_unfinished_once() -> None:
    policy = Slow()
    first, own = slow(policy), slow(policy, partial=None)
    first.load_state_dict({"asked": 8})
    first.begin([], 0, 1)
    first.take()
    own.load_state_dict(first.state_dict())
    drawn = []
    for step in (2, 3):
        own.begin([], step - 1, step)
        drawn.append(own.take())
    assert policy.given[1:] == [["8", "9", "10", "11"], ["12", "13", "14", "15"]]
    assert [[one.prompt for one in each.trained] for each in drawn] == policy.given[1:]
    assert [each.oldest for each in drawn] == [0, 2]


def test_those_that_may_tell_apart_yet_hold_their_places() -> None:
    """Prompts are asked again while these and those that do are too few; all that are begun are
    asked first in the next round, and no new ones where they are more than it has."""
    policy = Slow(apart={8, 12, 14, 15})
    own = slow(policy, times=3)
    own.load_state_dict({"asked": 8})
    drawn = []
    for step in range(1, 5):
        if step == 3:
            own = gone_on_with(own, slow(policy, times=3))
        own.begin([], step - 1, step)
        drawn.append(own.take())
    assert policy.given == [
        ["8", "9", "10", "11"],  # all may
        ["8", "9", "10", "11"],  # one does, one does not, and two may
        ["12", "13", "14", "15"],
        ["10", "11", "12", "13", "14", "15"],  # two do not, four may
        ["12", "13", "14", "15"],  # three do, one does not
        ["16", "17", "18", "19"],
    ]
    assert [[one.prompt for one in each.trained] for each in drawn] == [
        [], ["8"], [], ["12", "14", "15"]
    ]  # fmt: skip
    assert [[one.prompt for one in each.groups] for each in drawn] == [
        [], ["8", "9"], ["10", "11"], ["12", "13", "14", "15"]
    ]  # fmt: skip
    assert [each.unfinished for each in drawn] == [6, 10, 4, 8]
    assert [each.made for each in drawn] == [16, 28, 20, 24]


def test_tokens_that_a_round_has_made_are_its_own_alone() -> None:
    """Also where the one before it is of the same weights, as the first two are that answer while
    the other is trained on."""
    own = slow(Slow())
    own.load_state_dict({"asked": 8})
    drawn = []
    for step, version in ((1, 0), (2, 0), (3, 1)):
        own.begin([], version, step)
        drawn.append(own.take())
    assert [each.made for each in drawn] == [16, 12, 12]
