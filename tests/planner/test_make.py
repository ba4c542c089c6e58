"""Whole plans: what they come to, what they refuse, and which change lets a run fit."""

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.planner.make import make_plan, refuse_format
from dsv3_plugin.recipe.load import changed, load_recipe
from tests.planner.settings import GPUS, LAPTOP

V3 = load_recipe("pretrain/deepseek-v3", machine=GPUS)
H800 = load_cluster("h800")


@pytest.fixture(scope="module")
def full():
    """The full-size recipe on the report's cluster."""
    return make_plan(V3, H800, GPUS)


def test_a_plan_is_of_the_whole_run(full):
    assert full.processes == 2048
    assert sum(phase.tokens for phase in full.phases) == V3.total_tokens
    assert full.gpu_hours == pytest.approx(full.seconds * 2048 / 3600)
    assert full.cost == pytest.approx(2.0 * full.gpu_hours)
    for phase in full.phases:
        # Seconds of the phase lie between all its steps as short as the first and as the last.
        assert 0.2 * phase.steps * phase.step_seconds < phase.seconds
        assert phase.seconds <= phase.steps * phase.step_seconds * (1 + 1e-9)
        assert sum(phase.time_by_part.values()) == pytest.approx(phase.step_seconds)
        assert phase.tokens_per_second_per_gpu == pytest.approx(
            phase.batch * 4096 / phase.step_seconds / 2048
        )
        model_flops = phase.tokens_per_second_per_gpu * full.flops.total
        assert phase.mfu == pytest.approx(model_flops / 1978.9e12)


def test_the_report_is_met_within_a_fifth(full):
    """180K GPU hours for a trillion tokens, with DeepSeek's own kernels; these are ours."""
    per_trillion = full.gpu_hours / (V3.total_tokens / 1e12)
    assert 0.8 < per_trillion / 180e3 < 1.25


def test_every_pipeline_rank_has_its_memory_by_part(full):
    for phase in full.phases:
        assert [rank.pipeline_rank for rank in phase.ranks] == list(range(16))
        assert sum(rank.work for rank in phase.ranks) == pytest.approx(16)
        layers = sum(stage.decoder_layers for rank in phase.ranks for stage in rank.stages)
        assert layers == 61
        for rank in phase.ranks:
            assert sum(rank.memory_bytes.values()) == rank.memory_total
            assert rank.memory_bytes["weights"] > 0


def test_a_growing_batch_is_followed_from_its_ends():
    """The steps between the first and the last of a phase, each planned on its own."""
    small = ("training.tokens=null", "training.steps=100", "curves.learning_rate=1e-4",
             "curves.router_bias_speed=0.001", "curves.mtp_weight=0.3")  # fmt: skip
    batches = (4096, 8192, 15360)
    each = [
        make_plan(changed(V3, (*small, f"curves.batch_size={batch}")), H800, GPUS)
        for batch in batches
    ]
    first, middle, last = (plan.phases[-1].step_seconds for plan in each)
    grown = (8192 - 4096) / (15360 - 4096)
    assert middle == pytest.approx(first + grown * (last - first), rel=1e-3)


def test_more_imbalance_takes_longer(full):
    skewed = make_plan(V3, H800, GPUS, imbalance=1.2)
    assert skewed.gpu_hours > full.gpu_hours


def test_what_no_layout_could_help_is_refused():
    with pytest.raises(UserError, match="asks for 4,096 devices, and there are 2,048"):
        make_plan(changed(V3, ("parallel.processes=4096", "curves.batch_size=15360")), H800, GPUS)
    no_fp8 = H800.model_copy(
        update={"peak_tflops": H800.peak_tflops.model_copy(update={"fp8": None})}
    )
    with pytest.raises(UserError, match=r"does not compute in FP8: set precision\.fp8=null"):
        make_plan(V3, no_fp8, GPUS)
    mxfp8 = changed(V3, ("precision.fp8.recipe=mxfp8",))
    for hopper in ("h100", "h200", "h800"):
        with pytest.raises(UserError, match=r"32 values.*set precision\.fp8\.recipe=blockwise"):
            make_plan(mxfp8, load_cluster(hopper), GPUS)
    for blackwell in ("b200", "gb200", "gb300"):
        refuse_format(mxfp8, load_cluster(blackwell))


def test_a_batch_that_comes_and_goes_counts_in_time_and_memory():
    def planned(curve):
        tiny = load_recipe("pretrain/tiny", [f"curves.batch_size={curve}"], LAPTOP)
        return make_plan(tiny, load_cluster("cpu"), LAPTOP)

    pieces = (f"{{constant: {b}, until: {t}}}" for b, t in ((8, 2048), (64, 34816), (8, 36864)))
    to_and_fro = f"[{', '.join(pieces)}, {{constant: 16}}]"
    plan, even = planned(to_and_fro), planned(64)
    phase, there = plan.phases[0], even.phases[0]
    assert (phase.steps, phase.batch) == (4, 8)
    assert phase.fullest.memory_total == there.fullest.memory_total
    besides = sum(p.time_by_part[part] for p in (phase, there) for part in ("saving", "evaluation"))
    twice_each = 2 * (phase.step_seconds + there.step_seconds)
    assert phase.seconds == pytest.approx(twice_each, abs=2 * besides)


def test_checkpoints_are_counted_along_the_run(full):
    """Of 242,940 steps every thousandth saves, and the last."""
    assert [phase.checkpoints_written for phase in full.phases] == [2, 13, 228]


def test_what_does_not_fit_fits_with_the_change_that_is_named(full):
    card = max(phase.fullest.memory_total for phase in full.phases) / 1e9
    tight = H800.model_copy(update={"memory_gb": 0.97 * card})
    limit = make_plan(V3, tight, GPUS).limit
    assert not limit.fits
    assert "it does not fit: pipeline rank" in limit.sentence
    assert limit.overrides
    assert " ".join(limit.overrides) in limit.way_out
    assert make_plan(changed(V3, limit.overrides), tight, GPUS).limit.fits


def test_what_fits_nowhere_has_no_way_out():
    toy = H800.model_copy(update={"memory_gb": 1.0})
    limit = make_plan(V3, toy, GPUS).limit
    assert not limit.fits
    assert (limit.overrides, limit.way_out) == ((), "")
    assert limit.sentence.endswith("or let --search look further")


def test_a_laptops_recipe_on_a_laptop():
    tiny = load_recipe("pretrain/tiny", machine=LAPTOP)
    plan = make_plan(tiny, load_cluster("cpu"), LAPTOP)
    assert plan.limit.fits
    assert plan.cost == 0
    assert [phase.batch for phase in plan.phases] == [8, 16]
