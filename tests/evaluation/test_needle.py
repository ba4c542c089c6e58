"""Scoring, with models made by hand: one that looks the answer up, and others that cannot."""

import re

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.evaluation.facts import KINDS, names
from dsv3_plugin.evaluation.haystack import Haystack
from dsv3_plugin.evaluation.needle import Asked, Setting, find_needles
from tests.evaluation.test_haystack import LINES, Letters

SETTING = Setting((300, 900), (0.0, 0.5, 1.0), KINDS, needles=3, samples=4)


def looks_up(window):
    """A model that finds the question again in the last so many tokens, and copies."""

    def proceed(tokens, count):
        text = Letters().decode(tokens)
        question = text.rpartition("\n")[2]
        seen = text[: -len(question)][-window:]
        _, found, after = seen.rpartition(question)
        return Letters().encode(after[:count] if found else "?" * count)

    return proceed


def asked(setting=SETTING, proceed=None, text=LINES):
    haystack = Haystack("the text", Letters().encode(text), Letters())
    return find_needles(setting, haystack, proceed or looks_up(10**6))


def test_who_copies_finds_all_and_nothing_without_the_needle():
    found = asked()
    for kind in KINDS:
        for length in SETTING.lengths:
            assert [found.share(kind, length, depth) for depth in SETTING.depths] == [1, 1, 1]
            assert found.share(kind, length, None) == 0


def test_who_sees_the_last_tokens_alone_finds_what_is_there():
    found = asked(proceed=looks_up(200))
    shares = {
        (length, depth): found.share("digits", length, depth)
        for length in SETTING.lengths
        for depth in SETTING.depths
    }
    assert shares[900, 0.0] == shares[900, 0.5] == 0
    assert shares[900, 1.0] == shares[300, 1.0] == 1


def test_who_copies_the_first_fact_is_wrong_where_there_are_others():
    def first_fact(tokens, count):
        text = Letters().decode(tokens)
        facts = re.findall(r"^The pass\w+ of .* is( .*\.)$", text, re.MULTILINE)
        return Letters().encode((facts or ["?"])[0][:count])

    alone = asked(Setting((600,), (0.5,), ("words",), needles=1, samples=20), first_fact)
    assert alone.share("words", 600, 0.5) == 1
    among = asked(Setting((600,), (0.5,), ("words",), needles=5, samples=20), first_fact)
    assert among.share("words", 600, 0.5) < 0.6


def test_the_same_facts_are_asked_at_every_length_and_depth():
    found = asked()
    by_sample = {}
    for one in found.asked:
        by_sample.setdefault((one.kind, one.sample), set()).add((one.question, one.expected))
    assert all(len(facts) == 1 for facts in by_sample.values())
    assert len(found.asked) == SETTING.questions
    assert len({facts.pop() for facts in by_sample.values()}) == len(KINDS) * SETTING.samples


def test_questions_are_evaluations_half_and_a_function_of_the_seed():
    found = asked()
    for one in found.asked:
        name = re.fullmatch(r"The pass\w+ of (.*) is", one.question)[1]
        assert name in names("evaluation")
    assert asked() == found
    other = asked(Setting(**{**vars(SETTING), "seed": 1}))
    assert [one.question for one in other.asked] != [one.question for one in found.asked]


@pytest.mark.parametrize(
    ("said", "right"),
    [
        (" 4 7 1 9.", True),
        ("4 7 1 9.\nThe", True),
        (" 4 7 1 9", False),
        (" 4 7 1 9 2.", False),
        (" 4 7 1 8.", False),
        ("", False),
    ],
)
def test_the_whole_answer_is_right_and_nothing_less(said, right):
    assert Asked("digits", 9, 0.5, 0, "The", " 4 7 1 9.", said).is_right is right


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"depths": (0.5, 1.5)}, "from 0 to 1, and cannot be 1.5"),
        ({"depths": (-0.1,)}, "cannot be -0.1"),
        ({"lengths": (0,)}, "cannot be 0"),
        ({"needles": 0}, "--needles is between 1 and"),
        ({"needles": 10**6}, "--needles is between 1 and"),
    ],
)
def test_what_cannot_be_asked_is_refused(changed, sentence):
    with pytest.raises(UserError, match=sentence):
        Setting(**{**vars(SETTING), **changed}).check()


def test_lengths_beyond_the_models_positions_are_refused_with_the_way_to_see_them():
    SETTING.refuse_beyond(900)
    with pytest.raises(UserError, match=r"900 is beyond .* 899 .*max_position_embeddings=900"):
        SETTING.refuse_beyond(899)


def test_what_does_not_fit_is_said_before_the_model_is_asked():
    def unasked(tokens, count):
        raise AssertionError

    with pytest.raises(UserError, match="less than facts, question and answer"):
        asked(Setting((900, 60), (0.5,), KINDS), unasked)
