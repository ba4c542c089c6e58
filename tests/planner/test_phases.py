"""A run in phases: none of its steps or tokens is lost, and each has one schedule."""

import pytest

from dsv3_plugin.planner.phases import largest_batches, phases_of
from tests.planner.settings import steps_of


@pytest.mark.parametrize("name", ["pretrain/deepseek-v3", "pretrain/tiny"])
def test_phases_are_the_whole_run(name):
    recipe = steps_of(name).recipe
    phases = phases_of(recipe)
    assert sum(phase.steps for phase in phases) == recipe.total_steps
    assert sum(phase.tokens for phase in phases) == recipe.total_tokens
    assert [batch for phase in phases for batch, _ in phase.batches] == [
        batch for _, batch in recipe.batch_schedule.entries
    ]


def test_the_ramp_of_the_report_begins_with_another_schedule():
    phases = phases_of(steps_of("pretrain/deepseek-v3").recipe)
    assert [(phase.schedule, phase.batches[0][0], phase.batches[-1][0]) for phase in phases] == [
        ("1f1b_v", 3072, 3968),
        ("dualpipe_v", 4096, 15232),
        ("dualpipe_v", 15360, 15360),
    ]
    assert phases[0].name == "batch 3,072 to 3,968"


def test_a_run_of_one_batch_is_one_phase():
    recipe = steps_of("pretrain/tiny", "curves.batch_size=8", "training.steps=7",
                      "curves.learning_rate=1e-3", "curves.router_bias_speed=0.001",
                      "curves.mtp_weight=0.3").recipe  # fmt: skip
    (phase,) = phases_of(recipe)
    assert (phase.steps, phase.batches, phase.tokens) == (7, ((8, 7),), 7 * 8 * 256)


def test_a_batch_that_grows_and_shrinks_has_a_largest():
    pieces = (f"{{constant: {b}, until: {t}}}" for b, t in ((8, 2048), (64, 34816), (8, 36864)))
    curve = f"[{', '.join(pieces)}, {{constant: 16}}]"
    phases = phases_of(steps_of("pretrain/tiny", f"curves.batch_size={curve}").recipe)
    assert [phase.name for phase in phases] == ["batch 8 to 64", "batch 16"]
    assert phases[0].batches == ((8, 1), (64, 2), (8, 1))
    assert largest_batches(phases) == {"1f1b": 64}
