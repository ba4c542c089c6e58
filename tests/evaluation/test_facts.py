"""Made-up facts: two halves that share nothing, and documents that ask for what they state."""

import itertools
import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3_plugin.evaluation.facts import (
    KINDS,
    chance,
    draw_facts,
    most_facts,
    names,
    training_documents,
    values,
)

HALVES = ("training", "evaluation")
PASSAGES = [f"line {number} of real text" for number in range(40)]


def test_what_is_trained_on_is_never_asked_for():
    assert not {*names("training")} & {*names("evaluation")}
    for kind in KINDS:
        assert not {*values(kind, "training")} & {*values(kind, "evaluation")}


def test_both_halves_are_made_of_the_same_words_and_digits():
    def parts(half):
        of_values = [value for kind in KINDS for value in values(kind, half)]
        return {part for value in of_values for part in value}

    words = {half: {w for name in names(half) for w in name.split()} for half in HALVES}
    assert words["training"] == words["evaluation"]
    assert parts("training") == parts("evaluation")


def test_the_halves_are_all_there_is():
    assert len(values("digits", "training")) + len(values("digits", "evaluation")) == 10**4
    assert most_facts() == len(names("evaluation")) > 50


def test_chance_is_that_of_a_guess_among_the_values():
    for kind in KINDS:
        assert chance(kind) == pytest.approx(1 / len(values(kind, "evaluation")))


@pytest.mark.parametrize("place", range(4))
def test_no_digit_of_a_half_tells_which_it_is(place):
    """A hash decides, so that each digit is as likely at each place, within a few of 250."""
    counts = Counter(value[place] for value in values("digits", "evaluation"))
    expected = len(values("digits", "evaluation")) / 10
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


@given(
    count=st.integers(1, 60), seed=st.integers(0, 1000), kinds=st.sampled_from([KINDS, KINDS[:1]])
)
def test_facts_of_a_text_have_names_and_values_of_their_own(count, seed, kinds):
    facts = draw_facts(count, kinds, "evaluation", random.Random(seed))
    assert len({fact.name for fact in facts}) == len({fact.value for fact in facts}) == count
    assert {fact.kind for fact in facts} == {*kinds[:count]}
    for fact in facts:
        assert fact.sentence == fact.question + fact.answer
        assert fact.name in names("evaluation")
        assert fact.value in values(fact.kind, "evaluation")


def test_a_document_asks_for_all_that_it_states():
    documents = training_documents(PASSAGES, facts=4, passages_each=3, times_asked=2, seed=5)
    for document in itertools.islice(documents, 50):
        lines = document.splitlines()
        stated = [line for line in lines if re.match(r"The pass\w+ of .* is .*\.$", line)]
        assert Counter(Counter(stated).values()) == {3: 4}
        assert len([line for line in lines if line in PASSAGES]) == 3
        for line in stated:
            name = line.partition(" of ")[2].partition(" is ")[0]
            assert name in names("training")


def test_documents_are_a_function_of_the_seed():
    def some(seed):
        documents = training_documents(PASSAGES, facts=2, passages_each=2, seed=seed)
        return [*itertools.islice(documents, 5)]

    assert some(1) == some(1) != some(2)
