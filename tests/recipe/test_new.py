"""A recipe written anew says what the one says that it is written from."""

import re

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.recipe.new import written_anew
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.recipe.shipped import what_ships

CURVES = ("learning_rate", "batch_size", "router_bias_speed", "mtp_weight")


def read_back(text: str, tmp_path) -> Recipe:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path)


@pytest.mark.parametrize("name", what_ships()["recipes"])
def test_it_reads_back_as_what_it_was_written_from(name: str, tmp_path):
    origin = load_recipe(name)
    mine = read_back(written_anew(origin, name), tmp_path)
    apart = {"name", "directory", "training", "curve_specs", "pipeline"}
    for key in type(origin).model_fields.keys() - apart:
        assert getattr(mine, key) == getattr(origin, key), key
    assert mine.executor == origin.executor
    assert mine.pipeline.layout == origin.pipeline.layout
    assert mine.total_tokens == pytest.approx(origin.total_tokens, rel=1e-3)
    for curve in CURVES:
        ours, theirs = getattr(mine.curves, curve), getattr(origin.curves, curve)
        assert [(s.shape, s.first, s.last) for s in ours.segments] == [
            (s.shape, s.first, s.last) for s in theirs.segments
        ]
        # Within the last digit of a share.
        assert ours.boundaries == pytest.approx(
            theirs.boundaries, rel=0, abs=1e-4 * origin.total_tokens + origin.data.seq_length
        )


def test_every_key_has_its_meaning_beside_or_above_it():
    text = written_anew(load_recipe("pretrain/tiny"), "pretrain/tiny")
    assert text.startswith("# A recipe written from pretrain/tiny. ")
    assert "\n  seq_length: 256  # Tokens per sequence.\n" in text
    assert "\n    - {linear: 0.004, from: 0, until: 6.96%}\n" in text
    assert "\n\n\n" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_curves_beyond_the_end_are_drawn_into_the_run(tmp_path):
    short = load_recipe("pretrain/tiny", ["training.steps=24"])
    mine = read_back(written_anew(short, "it"), tmp_path)
    whole = load_recipe("pretrain/tiny")
    assert mine.total_tokens == pytest.approx(short.total_tokens, abs=16 * 256)  # a step
    for position in (0.1, 0.5, 0.8):
        assert mine.curves.learning_rate(int(position * mine.total_tokens)) == pytest.approx(
            whole.curves.learning_rate(int(position * whole.total_tokens)), rel=0.05
        )


def test_another_budget_has_the_same_shape(tmp_path):
    tiny = load_recipe("pretrain/tiny")
    mine = read_back(written_anew(tiny, "it", tokens=2_000_000), tmp_path)
    assert mine.training.tokens == 2_000_000
    for curve in CURVES:
        assert getattr(mine.curves, curve)(1_500_000) == pytest.approx(
            getattr(tiny.curves, curve)(int(0.75 * tiny.total_tokens)), rel=0.01
        )


@pytest.mark.parametrize("steps", [1, 4, 60, 240, 1000])
def test_steps_in_place_of_its_tokens_have_its_shape_too(steps, tmp_path):
    (tmp_path / "mine.yaml").write_text(written_anew(load_recipe("pretrain/tiny"), "it"))
    short = load_recipe(tmp_path / "mine.yaml", [f"training.steps={steps}"])
    assert short.total_steps == steps
    assert short.total_tokens == sum(
        batch * 256 * number for batch, number in short.batch_schedule.levels(steps)
    )
    # The ramp of batch sizes ends at the share of the run that is written, up to a step.
    ramp = short.curves.batch_size.segments[0]
    assert ramp.end == pytest.approx(0.1133 * short.total_tokens, abs=16 * 256)


def test_a_budget_in_tokens_is_refused_where_epochs_are_counted():
    with pytest.raises(UserError, match=r"sft/tiny trains for 2 epochs of its conversations: "):
        written_anew(load_recipe("sft/tiny"), "sft/tiny", tokens=1000)


def test_what_is_changed_of_a_shipped_model_is_said(tmp_path):
    changed = load_recipe(
        "pretrain/tiny", ["model.num_layers=6", "model.moe_layer_freq=[0]*1+[1]*5"]
    )
    text = written_anew(changed, "it")
    assert "\nmodel:\n  base: tiny\n  # To change it, " in text
    assert "\n  num_layers: 6\n  moe_layer_freq: '[0]*1+[1]*5'\n" in text
    assert "# num_layers" not in text
    assert read_back(text, tmp_path).model == changed.model


@pytest.mark.parametrize("name", ["pretrain/tiny", "pretrain/deepseek-v3"])
def test_keys_of_the_model_that_are_shown_can_be_taken_as_they_are(name, tmp_path):
    origin = load_recipe(name)
    text = written_anew(origin, name)
    above, model, below = re.split(r"^(?=model:|# What computes)", text, flags=re.MULTILINE)
    shown = re.findall(r"^  # (\w+: .+)$", model, re.MULTILINE)
    assert len(shown) == 14
    assert f"num_moe_experts: {origin.model.num_moe_experts}  # Routed experts of an" in "".join(
        shown
    )
    taken = re.sub(r"^  # (\w+: .+)$", r"  \1", model, flags=re.MULTILINE)
    assert read_back(above + taken + below, tmp_path).model == origin.model
    larger = text.replace(f"  # hidden_size: {origin.model.hidden_size}", "  hidden_size: 256")
    assert read_back(larger, tmp_path).model.hidden_size == 256
