"""A key explained is what docs/recipes.md says of it."""

from pathlib import Path

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe.explained import explained, having, paths
from dsv3_plugin.recipe.fields import FIELDS
from dsv3_plugin.recipe.other_names import MEANT
from dsv3_plugin.recipe.schema import DEFAULT_STAGE, STAGES

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("stage", STAGES)
def test_every_key_is_explained_as_on_the_page(stage: str):
    for path in paths(STAGES[stage]):
        [told] = (found.told for found, stages in explained(path).items() if stage in stages)
        row = f"| `{told.key}` | {told.value} | {told.default} | {told.meaning} |"
        assert row in PAGE, path


def test_a_section_shows_what_is_in_it():
    [(optimizer, stages)] = explained("optimizer").items()
    assert stages == list(STAGES)
    assert [told.key for told in optimizer.keys] == [
        "kind", "betas", "eps", "weight_decay", "clip_grad",
    ]  # fmt: skip


def test_a_key_of_some_stages_names_them():
    [stages] = explained("from").values()
    assert stages
    assert DEFAULT_STAGE not in stages


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("eval_steps", "'training.eval_steps'"),
        ("training.eval_step", "'training.eval_steps'"),
        ("path", "'data.path', 'data.corpus.path'"),
    ],
)
def test_a_key_that_is_none_is_refused_with_the_nearest(path: str, nearest: str):
    with pytest.raises(UserError, match=f"no recipe has a key '{path}' \\(nearest: ") as refused:
        explained(path)
    for name in nearest.split(", "):
        assert name in str(refused.value)


@pytest.mark.parametrize("path", ["", ".", "data.", "qqqq", "data..path"])
def test_odd_keys_are_refused_in_a_sentence(path: str):
    with pytest.raises(UserError, match="no recipe has a key"):
        explained(path)


def test_what_keys_are_called_elsewhere():
    every = {known for kind in STAGES.values() for known in paths(kind)}
    assert {*MEANT.values()} <= every
    assert not MEANT.keys() & every
    published = {field.hf_key: f"model.{field.ours}" for field in FIELDS}
    assert all(published.get(name, key) == key for name, key in MEANT.items())


def test_words_are_found_whole():
    [only] = having("lr")  # and no "already"
    assert only.path == "curves.learning_rate"


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("rewards.match", "rewards"),
        ("rewards.mine.score", "rewards"),
        ("rewards.length.margin", "margin"),
        ("rewards.mine.score.weight", "weight"),
        ("rewards.NAME.margin", "margin"),
    ],
)
def test_a_key_under_a_name_of_the_users_own(path, key):
    [meaning] = explained(path)
    assert meaning.told.key == key


@pytest.mark.parametrize(
    ("path", "near"),
    [("rewards.acuracy", "rewards.accuracy"), ("margin", "rewards.NAME.margin")],
)
def test_the_nearest_of_them_is_named(path, near):
    with pytest.raises(UserError, match=f"nearest: '{near}'"):
        explained(path)
