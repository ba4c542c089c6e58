"""A step: its parts add up, and what follows the pipeline is what can be reckoned by hand."""

from dataclasses import replace

import pytest

from dsv3_plugin.planner.time.step import checkpoint_bytes, evaluation_seconds, saving_seconds
from tests.planner.settings import setting_of, steps_of


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("pipeline.schedule=dualpipe", "pipeline.layout=null", "pipeline.ramp_schedule=null",
         "curves.batch_size=15360"),
        ("pipeline.schedule=1f1b", "pipeline.layout=null", "pipeline.ramp_schedule=null",
         "curves.batch_size=15360"),
    ],
    ids=["dualpipe_v", "dualpipe", "1f1b"],
)  # fmt: skip
def test_the_parts_of_a_step_are_all_of_it(overrides):
    step = steps_of("pretrain/deepseek-v3", *overrides).step(15360)
    assert sum(step.parts.values()) == pytest.approx(step.seconds)
    assert sum(step.mean_parts.values()) == pytest.approx(step.seconds)
    assert min(step.parts.values()) >= 0
    assert len(step.busy) == 16
    assert max(step.busy) < step.seconds
    # Running side by side saves time, and what saves nothing is computed all the same.
    assert all(busy <= work * (1 + 1e-9) for busy, work in zip(step.busy, step.work, strict=True))


def test_one_rank_alone_only_computes():
    steps = steps_of("pretrain/tiny", "parallel.processes=1", "parallel.expert=1", cluster="cpu")
    step = steps.step(16)
    assert set(+step.parts) == {"gemm", "attention", "elementwise", "optimizer"}
    assert step.seconds == pytest.approx(sum(step.work) + step.parts["optimizer"])


def test_gradients_are_scattered_and_weights_gathered_over_the_ranks_that_share_them():
    """DeepSeek-V2-Lite on 16 ranks, experts over 8: a ring each, on either side of the network."""
    base = ("model=deepseek-v2-lite", "parallel.processes=16", "parallel.pipeline=1",
            "pipeline.devices=1", "parallel.expert=8", "pipeline.schedule=1f1b",
            "pipeline.layout=null", "pipeline.ramp_schedule=null",
            "curves.batch_size=64")  # fmt: skip
    steps = steps_of("pretrain/deepseek-v3", *base)
    experts = 26 * 8 * 3 * 2048 * 1408  # of 64, on a rank
    dense = 15_706_484_224 - 8 * experts
    cluster = steps.cluster
    network = cluster.network.gb_per_second * 1e9 * cluster.efficiency.network.value
    nvlink = cluster.nvlink.gb_per_second * 1e9 * cluster.efficiency.nvlink.value
    # FP32 gradients and BF16 weights; eight ranks of the ring on a node cross with eight cards.
    ring = dense * 6 * 15 / 16
    expected = max(ring / 8 / network, ring / nvlink) + experts * 6 / 2 / network
    found = steps.step(64).parts["data_parallel"]
    assert found == pytest.approx(expected, rel=0.01)
    hidden = replace(steps, setting=replace(steps.setting, overlapped_reduction=True))
    assert hidden.step(64).parts["data_parallel"] < found / 2


def test_a_checkpoint_as_large_as_those_that_are_written():
    # 684.5e9 values less MTP's copies of embedding and head, 14 bytes each.
    v3 = setting_of("pretrain/deepseek-v3")
    assert checkpoint_bytes(v3) == (684_489_845_504 - 2 * 129_280 * 7168) * 14
    # tiny's, after two CPU ranks wrote it: 52.3 MB with names and the state of random numbers.
    assert checkpoint_bytes(setting_of("pretrain/tiny")) == 4_303_328 * 12


def test_all_nodes_write_at_once():
    steps = steps_of("pretrain/deepseek-v3")
    per_node = steps.cluster.storage_gb_per_second * 1e9
    assert saving_seconds(steps.setting, steps.cluster) == pytest.approx(
        checkpoint_bytes(steps.setting) / (256 * per_node)
    )


def test_an_evaluation_is_a_third_of_the_passes():
    steps = steps_of("pretrain/deepseek-v3")
    arguments = steps.setting, steps.cluster, steps.stages, steps.placement
    once, twice = (evaluation_seconds(*arguments, number) for number in (24, 48))
    assert twice - once == pytest.approx(24 * max(
        sum(steps.costs.forward[stage] for stage in chunks) for chunks in steps.placement.chunks
    ))  # fmt: skip
