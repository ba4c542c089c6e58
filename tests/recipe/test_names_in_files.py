"""A file that names another that is not there, or is something else, is named itself."""

from pathlib import Path

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe.load import load_recipe, load_recipe_or_model

FILES = {
    "n12.yaml": "base: pretrain/tiny",
    "over.yaml": "base: n12",
    "nowhere.yaml": "base: nosuch",
    "of_recipe.yaml": "{base: pretrain/tiny, model: n12.yaml}",
    "of_nothing.yaml": "{base: pretrain/tiny, model: nosuch}",
    "of_bare.yaml": "{base: pretrain/tiny, model: m3}",
    "m3.yaml": "{base: tiny, num_layers: 3}",
    "misspelt.yaml": "{base: tiny, num_layerz: 4}",
    "over_recipe.yaml": "{base: n12.yaml, num_layers: 3, vocab_size: 300}",
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("over", "over.yaml: base: 'n12' is no file, and n12.yaml beside it is one: write that."),
        ("nowhere", "nowhere.yaml: base: 'nosuch' is neither a file nor a shipped recipe"),
        ("of_recipe", "n12.yaml is a recipe, and a model is asked for: name its model."),
        ("of_nothing", "of_nothing.yaml: model: 'nosuch' is neither a file nor a shipped model"),
        ("of_bare", "of_bare.yaml: model: 'm3' is no file, and "),
        ("of_bare", "/m3.yaml is one: write that."),
        ("misspelt", "misspelt.yaml is a model, and a recipe is asked for"),
    ],
)
def test_the_file_that_is_wrong_is_named(files: Path, name: str, sentence: str):
    with pytest.raises(UserError) as refused:
        load_recipe(files / f"{name}.yaml")
    assert sentence in str(refused.value)


def test_a_misspelt_model_is_told_its_key(files: Path):
    with pytest.raises(UserError, match=r"unknown key 'num_layerz' .nearest: 'num_layers'"):
        load_recipe_or_model(str(files / "misspelt.yaml"))


def test_keys_of_a_model_over_a_recipe_are_told_where_they_belong(files: Path):
    for load in (load_recipe, load_recipe_or_model):
        with pytest.raises(
            UserError, match=r"over_recipe\.yaml: unknown key 'num_layers' .*'model\.n"
        ):
            load(str(files / "over_recipe.yaml"))
