"""In which order prompts are asked."""

from collections import Counter

from dsv3_plugin.data.chat.conversation import Conversation
from dsv3_plugin.rollouts.asked import Asked
from dsv3_plugin.rollouts.curriculum import Curriculum
from dsv3_plugin.rollouts.order import Order
from dsv3_plugin.rollouts.prompts import Prompt


def asked(name: str) -> Asked:
    return Asked(Prompt(Conversation([{"content": name}]), None, (), {}, name), name, (1,), "")


FEW, MANY = [asked(f"a{n}") for n in range(3)], [asked(f"b{n}") for n in range(10)]


def names(order: Order, number: int) -> list[str]:
    return [one.text for one in order.take(number)]


def test_each_comes_once_in_an_epoch_and_epochs_differ() -> None:
    order = Order([MANY], [1.0], seed=3)
    first, second = names(order, 10), names(order, 10)
    assert sorted(first) == sorted(second) == [one.text for one in MANY]
    assert first != second
    assert names(Order([MANY], [1.0], seed=4), 10) != first


def test_a_mixture_has_its_weights_from_the_beginning_on() -> None:
    drawn = names(Order([FEW, MANY], [3.0, 1.0], seed=0), 40)
    for end in (8, 20, 40):
        assert Counter(name[0] for name in drawn[:end]) == {"a": end * 3 / 4, "b": end / 4}


def test_it_goes_on_where_it_was() -> None:
    whole = names(Order([FEW, MANY], [1.0, 2.0], seed=5), 50)
    order = Order([FEW, MANY], [1.0, 2.0], seed=5)
    order.go_on_from(17)
    assert order.given == 17
    assert names(order, 33) == whole[17:]


def taught(again: float = 0.0, seed: int = 5) -> Order:
    """Of prompts that were answered rightly as often as their names' numbers say, in tenths."""
    curriculum = Curriculum(low=0.2, high=0.8, again=again, seed=seed)
    for number, one in enumerate(MANY):
        curriculum.measured(one, number / 10)
    return Order([FEW, MANY], [1.0, 1.0], seed, curriculum)


def test_prompts_out_of_bounds_are_passed_over() -> None:
    """Each other one comes once in an epoch still, and a mixture keeps its weights."""
    drawn = names(taught(), 28)
    assert Counter(drawn[1::2]) == {f"b{number}": 2 for number in range(2, 9)}
    assert Counter(name[0] for name in drawn) == {"a": 14, "b": 14}
    numbers = taught().curriculum.numbers()
    assert numbers["rl/curriculum_measured"] == 10
    assert numbers["rl/curriculum_within"] == 0.7


def test_they_are_asked_again_now_and_then() -> None:
    drawn = Counter(names(taught(again=0.25), 8000))
    within = [drawn[f"b{number}"] for number in range(2, 9)]
    out = [drawn[f"b{number}"] for number in (0, 1, 9)]
    # Of 500 turns and more, with a deviation of 10 at most.
    assert max(abs(count / max(within) - 0.25) for count in out) < 0.1
    assert min(within) >= max(within) - 1


def test_nothing_measured_and_all_out_of_bounds_are_as_without_a_curriculum() -> None:
    untaught = Order([FEW, MANY], [1.0, 1.0], 5, Curriculum(0.2, 0.8, 0.0, 5))
    assert names(untaught, 40) == names(Order([FEW, MANY], [1.0, 1.0], 5), 40)
    for one in (*FEW, *MANY):
        untaught.curriculum.measured(one, 1.0)
        untaught.curriculum.measured(one, None)
    assert len(names(untaught, 40)) == 40


def test_what_was_measured_goes_on_too() -> None:
    whole = taught(again=0.3)
    before, after = names(whole, 30), names(whole, 50)
    order = taught(again=0.3)
    assert names(order, 30) == before
    gone_on = Order([FEW, MANY], [1.0, 1.0], 5, Curriculum(0.2, 0.8, 0.3, 5))
    gone_on.load_state_dict(order.state_dict())
    assert names(gone_on, 50) == after
    assert gone_on.curriculum.passed_over == whole.curriculum.passed_over > 0
