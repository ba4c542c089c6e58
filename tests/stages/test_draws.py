"""Prompts are asked again until enough of them tell answers apart."""

from types import SimpleNamespace

import pytest

from dsv3_plugin.rollouts.groups import Group, Scored
from dsv3_plugin.rollouts.rollout import Rollout
from dsv3_plugin.stages.draws import Draws
from dsv3_plugin.stages.round_numbers import Costs


def group(name: int, told_apart: bool) -> Group:
    rollout = Rollout((1,), (2,), (-1.0,), "stop", (0,))
    answers = (
        Scored(rollout, "", reward, {}, {}, False, "") for reward in (0.0, float(told_apart))
    )
    return Group(str(name), "", "", tuple(answers))


class Asking:
    """Answers to prompts, which are numbers: those of some tell them apart."""

    def __init__(self, apart: set[int]) -> None:
        self._apart, self._next, self.seeds = apart, 0, []
        self.data = SimpleNamespace(order=lambda recipe: self)
        self.curriculum = None

    def load_state_dict(self, state) -> None:
        pass

    def take(self, number: int) -> list[int]:
        self._next += number
        return [*range(self._next - number, self._next)]

    def ask(self, model, asked, n, seed, version) -> None:
        self._asked = asked
        self.seeds.append(seed)

    def asked_for(self) -> tuple[list[Group], Costs]:
        return [group(one, one in self._apart) for one in self._asked], Costs(seconds=1.0, lost=1)


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
    settings = SimpleNamespace(dynamic_sampling=times, prompts=3, n=2, kind="embedded")
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
