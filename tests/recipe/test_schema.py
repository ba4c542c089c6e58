"""What follows from the keys of a recipe."""

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.machine import Machine
from dsv3_plugin.recipe import yaml_text
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.schedules.registry import SCHEDULES
from tests.recipe.piped import PIPED

LAPTOP = Machine(gpus=0, transformer_engine=False)
GPU_SERVER = Machine(gpus=8, transformer_engine=True)


def test_steps_and_tokens_are_the_same_run():
    by_steps = load_recipe("pretrain/tiny", ["training.steps=50"])
    tokens = by_steps.total_tokens
    by_tokens = load_recipe(
        "pretrain/tiny", ["training.steps=null", f"training.tokens={tokens - 1}"]
    )
    assert by_tokens.total_steps == 50
    assert by_tokens.total_tokens == tokens


def test_auto_looks_at_the_machine():
    recipe = load_recipe("pretrain/tiny", ["host=auto", "backend=auto"])
    assert recipe.resolved_backend(GPU_SERVER) == "transformer_engine"
    for gpus, transformer_engine in [(8, False), (0, True)]:
        assert recipe.resolved_backend(Machine(gpus, transformer_engine)) == "local"


def test_what_auto_finds_is_held_to_the_rules_and_not_written_down():
    wants = ["host=auto", "backend=auto", "model.hidden_size=62"]
    assert load_recipe("pretrain/tiny", wants, GPU_SERVER).backend == "auto"
    assert load_recipe("pretrain/tiny", wants).backend == "auto"
    with pytest.raises(UserError) as caught:
        load_recipe("pretrain/tiny", wants, LAPTOP)
    assert "hidden_size 62 is not a multiple of 4" in str(caught.value)
    assert str(caught.value).endswith("60 or 64 (backend: auto finds local on this machine).")
    laptop = load_recipe("pretrain/tiny", ["host=auto", "backend=auto"], LAPTOP)
    assert "backend: auto" in laptop.to_yaml()


def test_a_recipe_says_its_stage(tmp_path):
    assert load_recipe("pretrain/tiny").stage == "pretrain"
    written = yaml_text.parse(load_recipe("pretrain/tiny").to_yaml(), "here")
    assert written.pop("stage") == "pretrain"  # as recipes did not, once
    (tmp_path / "recipe.yaml").write_text(yaml_text.dump(written))
    assert load_recipe(tmp_path / "recipe.yaml") == load_recipe("pretrain/tiny")
    for stage in ("distil", "[1]"):
        sentence = r"there is no stage .*; the stages are pretrain, extend, sft, rl\.$"
        with pytest.raises(UserError, match=sentence):
            load_recipe("pretrain/tiny", [f"stage={stage}", "rollouts.n=3"])


def test_devices_and_pipeline_are_one_number():
    long = load_recipe("pretrain/tiny", ["parallel.processes=4", "pipeline.devices=2"])
    short = load_recipe("pretrain/tiny", ["parallel.processes=4", "parallel.pipeline=2"])
    assert long == short
    assert long.parallel.pipeline == long.pipeline.devices == 2


@pytest.mark.parametrize("schedule", sorted(SCHEDULES.keys() - {"interleaved"}))
def test_every_schedule_has_a_recipe(schedule):
    recipe = load_recipe("pretrain/tiny", [*PIPED, f"pipeline.schedule={schedule}"])
    assert recipe.pipeline_stages == (
        4 if schedule in ("1f1b_v", "zbv", "dualpipe_v", "search") else 2
    )
    assert recipe.executor == ("upstream" if schedule == "1f1b" else "ours")
