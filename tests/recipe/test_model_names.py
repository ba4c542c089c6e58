"""A model is called the same wherever people are told."""

from dsv3_plugin.recipe.load import load_model
from dsv3_plugin.recipe.model_names import told_name


def test_a_shipped_model_has_its_name_whatever_its_folder_is_called():
    tiny = load_model("tiny")
    assert told_name(tiny.model_copy(update={"name": "my-tiny"})) == "tiny"
    other = tiny.model_copy(update={"name": "my-tiny", "rotary_base": 20000})
    assert told_name(other) == "my-tiny"
