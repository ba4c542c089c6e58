"""The choice of held-out documents: by hash, near the asked share, never leaving a side empty."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3_plugin.data.corpus import Document
from dsv3_plugin.data.survey import document_hash, held_out_below, survey
from dsv3_plugin.errors import UserError


def documents(texts):
    return [Document(str(i), text) for i, text in enumerate(texts)]


def held_out(texts, fraction):
    found = documents(texts)
    bound = held_out_below(survey(found), fraction)
    return {document.text for document in found if document_hash(document) < bound}


def test_survey_counts_and_fingerprints():
    found = survey(documents(["a", "äö"]))

    assert (found.documents, found.bytes) == (2, 5)
    assert found.digest == survey(documents(["a", "äö"])).digest
    assert found.digest != survey(documents(["äö", "a"])).digest
    with pytest.raises(UserError, match="empty"):
        survey([])


@given(
    texts=st.lists(st.text(min_size=1), min_size=2, unique=True),
    fraction=st.floats(min_value=0, max_value=1, exclude_min=True, exclude_max=True),
)
def test_neither_side_is_ever_empty(texts, fraction):
    assert 0 < len(held_out(texts, fraction)) < len(texts)


def test_share_is_near_the_asked_one():
    texts = [str(i) for i in range(10_000)]
    # 200 expected, standard deviation 14
    assert 140 < len(held_out(texts, 0.02)) < 260


def test_order_and_additions_move_no_document():
    texts = [str(i) for i in range(2000)]
    chosen = held_out(texts, 0.05)
    random.Random(0).shuffle(texts)

    assert held_out(texts, 0.05) == chosen
    assert chosen <= held_out([*texts, *(f"new {i}" for i in range(500))], 0.05)


def test_nothing_is_held_out_at_zero_and_impossible_requests_are_refused():
    assert held_out(["a", "b"], 0) == set()
    with pytest.raises(UserError, match="one single document"):
        held_out(["same", "same"], 0.5)
    for fraction in (-0.1, 1.0, float("nan")):
        with pytest.raises(UserError, match="held_out is"):
            held_out(["a", "b"], fraction)
