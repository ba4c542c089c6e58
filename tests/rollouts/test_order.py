"""In which order prompts are asked."""

from collections import Counter

from dsv3_plugin.data.chat.conversation import Conversation
from dsv3_plugin.rollouts.asked import Asked
from dsv3_plugin.rollouts.order import Order
from dsv3_plugin.rollouts.prompts import Prompt


def asked(name: str) -> Asked:
    return Asked(Prompt(Conversation([]), None, (), {}, name), name, (1,), "")


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
