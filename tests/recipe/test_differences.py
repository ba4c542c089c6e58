"""In which keys recipes differ."""

from dsv3_plugin.recipe.differences import MISSING, Difference, differences, whole_recipe
from dsv3_plugin.recipe.yaml_text import in_line, parse


def test_keys_that_differ_are_told_in_order():
    a = {"name": "a", "x": 1, "s": {"y": 1, "z": [1]}, "t": {"u": 1}}
    b = {"name": "b", "x": 1, "s": {"y": 2, "z": [1]}, "v": None}
    assert differences(a, b) == [
        Difference("s.y", 1, 2),
        Difference("t.u", 1, MISSING),
        Difference("v", MISSING, None),
    ]
    assert differences(a, a) == []


def test_a_run_keeps_a_whole_recipe(tmp_path):
    shipped = whole_recipe("pretrain/tiny")
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("stage: pretrain\nof_another_version: 1\n")
    assert whole_recipe(str(run)) == {"stage": "pretrain", "of_another_version": 1}
    assert differences(shipped, shipped) == []
    assert shipped["training"]["seed"] == 1234


def test_any_value_fits_a_line():
    for value in (1, None, True, "a: b", [1, [2]], [{"constant": 1e-3, "until": "8 steps"}], {}):
        text = in_line(value)
        assert "\n" not in text
        assert parse(text, "a line") == value
