"""The memory of DeepSeek-V3's own layout, part by part, and what changes it."""

from dataclasses import replace

import pytest

from dsv3_plugin.planner.memory.activations import stage_bytes
from dsv3_plugin.planner.memory.buffers import (
    allocator,
    computing_streams,
    dispatch_buffers,
    saving,
)
from dsv3_plugin.planner.memory.of_recipe import rank_memories
from dsv3_plugin.planner.memory.ranks import RankMemory
from dsv3_plugin.planner.phases import phases_of
from dsv3_plugin.planner.stages import Stage
from tests.planner.settings import setting_of, steps_of

V3 = steps_of("pretrain/deepseek-v3", "precision.swiglu_input=null")
"""PP16, EP64, DualPipeV, FP8 in blocks, two hops; 4 MoE layers on most ranks."""


@pytest.fixture(scope="module")
def ranks() -> list[RankMemory]:
    return rank_memories(V3, 15360)


def test_parts_are_of_the_moment_that_needs_most(ranks: list[RankMemory]) -> None:
    for rank in ranks:
        assert sum(rank.parts.values()) == rank.total == rank.moments["step"]
        assert rank.moments["optimizer"] <= rank.moments["saving"] < rank.moments["step"]
        assert rank.parts["saving"] == 0


def test_a_middle_rank_has_what_was_estimated_for_it(ranks: list[RankMemory]) -> None:
    parts = {part: size / 1e9 for part, size in ranks[7].parts.items()}
    static = sum(parts[part] for part in ("weights", "gradients", "optimizer", "fp8_copies"))
    assert static == pytest.approx(16, rel=0.02)
    assert 56 < parts["activations"] < 61
    assert parts["dispatch_buffers"] == pytest.approx(2, rel=0.35)
    assert parts["logits"] == 0
    assert 77 < ranks[7].total / 1e9 < 85


@pytest.mark.parametrize("cluster", ["h800", "h100"])
def test_the_recipe_fits_with_five_to_spare_at_an_imbalance_of_a_fifth(cluster: str) -> None:
    shipped = steps_of("pretrain/deepseek-v3", cluster=cluster)
    uneven = replace(shipped, setting=replace(shipped.setting, imbalance=1.2))
    for phase in phases_of(shipped.recipe):
        held = [rank.total for rank in rank_memories(uneven, phase.largest)]
        assert max(held) <= shipped.cluster.memory_bytes - 5e9, phase.name


@pytest.mark.parametrize(
    ("recompute", "as_computed", "in_fp8"),
    [
        ("[norms, mla_up_proj]", 268 + 69, 134 + 69),
        ("[norms, mla_up_proj, moe_act]", 268, 134),
    ],
)
def test_a_layers_swiglu_input_takes_half_in_fp8(recompute, as_computed, in_fp8) -> None:
    # 32,768 rows of 2 · 2048 values, and 4096 of the shared expert's; what is activated is kept
    # in FP8 with its scales where it is not computed again.
    as_it_is, fp8 = (
        stage_bytes(
            setting_of(
                "pretrain/deepseek-v3", f"recompute={recompute}",
                f"precision.swiglu_input={choice}",
            ),
            Stage(moe=1),
        )
        for choice in ("null", "fp8")
    )  # fmt: skip
    assert (as_it_is.layers - fp8.layers) / 1e6 == pytest.approx(
        as_computed - in_fp8 + 33.6 / 2, rel=0.01
    )
    # It is there as it was computed while the layer is.
    assert (fp8.forward - as_it_is.forward) / 1e6 == pytest.approx(268.4, rel=0.01)


def test_saving_gathers_nothing_on_the_device(ranks: list[RankMemory]) -> None:
    assert V3.setting.gathers_on_hosts
    assert all(rank.moments["saving"] == rank.moments["optimizer"] for rank in ranks)


def test_saving_over_nccl_gathers_the_largest_bucket() -> None:
    ranks = rank_memories(replace(V3, setting=replace(V3.setting, gathers_on_hosts=False)), 15360)
    gathered = [rank.moments["saving"] - rank.moments["optimizer"] for rank in ranks]
    assert gathered[7] / 1e9 == pytest.approx(3.7, rel=0.02)
    assert 9e9 < gathered[0] < 12e9  # head, and the layer of multi-token prediction


def test_imbalance_of_a_fifth_takes_seven_more(ranks: list[RankMemory]) -> None:
    uneven = rank_memories(replace(V3, setting=replace(V3.setting, imbalance=1.2)), 15360)
    assert (uneven[7].total - ranks[7].total) / 1e9 == pytest.approx(7, rel=0.15)


def test_logits_are_on_the_rank_of_the_head(ranks: list[RankMemory]) -> None:
    assert [rank.parts["logits"] > 0 for rank in ranks] == [True] + [False] * 15
    # The softmax of two predictions, in FP32.
    assert ranks[0].parts["logits"] > 2 * 129280 * 4096 * 4


@pytest.mark.parametrize(
    ("part", "stage"),
    [
        ("norms", Stage(moe=1)),
        ("mla_up_proj", Stage(moe=1)),
        ("core_attn", Stage(moe=1)),
        ("moe_act", Stage(moe=1)),
        ("shared_experts", Stage(moe=1)),
        ("moe", Stage(moe=1)),
        ("mlp", Stage(dense=1)),
    ],
)
@pytest.mark.parametrize("fp8", [None, "blockwise", "mxfp8"])
def test_what_is_recomputed_is_not_kept_but_worked_with(part: str, stage: Stage, fp8: str) -> None:
    plain = replace(V3.setting, recompute=frozenset(), fp8=fp8)
    without, again = (
        stage_bytes(setting, stage)
        for setting in (plain, replace(plain, recompute=frozenset({part})))
    )
    assert again.layers < without.layers
    assert again.backward >= without.backward


def test_context_parallel_ranks_keep_their_share_and_latents_of_the_whole_sequence() -> None:
    halved = replace(V3.setting, context=2, data=64)
    whole, half = (stage_bytes(s, Stage(moe=2)).layers for s in (V3.setting, halved))
    # In either layer, of the other rank's tokens: 512 values and 64 rotary ones, in BF16.
    gathered = 2 * 2048 * (512 + 64) * 2
    assert half == pytest.approx(whole / 2 + gathered, rel=1e-4)


@pytest.mark.parametrize("dispatcher", ["alltoall", "two_hop", "deepep", "hybridep"])
def test_dispatchers_have_buffers_where_experts_are_elsewhere(dispatcher: str) -> None:
    setting = replace(V3.setting, dispatcher=dispatcher)
    experts = (Stage(moe=2),)
    assert dispatch_buffers(setting, experts, pairs=False) > 0.5e9
    assert dispatch_buffers(setting, (Stage(dense=2),), pairs=False) == 0
    assert dispatch_buffers(replace(setting, expert=1), experts, pairs=False) == 0
    if dispatcher != "hybridep":  # which has room for everything once
        both = dispatch_buffers(setting, experts, pairs=True)
        assert both > 1.4 * dispatch_buffers(setting, experts, pairs=False)


def test_a_rank_hands_on_for_all_ranks_of_its_node_and_one_of_them_is_the_busiest() -> None:
    def growth(dispatcher: str) -> int:
        even = replace(V3.setting, dispatcher=dispatcher)
        uneven = replace(even, imbalance=1.2)
        busy, mean = (dispatch_buffers(one, (Stage(moe=2),), pairs=True) for one in (uneven, even))
        return busy - mean

    # What DeepEP receives and sends back is all for its own experts.
    assert growth("two_hop") / growth("deepep") == pytest.approx((1 + 1 / 8) / 2)


def test_a_cpu_has_neither_context_nor_communicators() -> None:
    setting = setting_of("pretrain/tiny", cluster="cpu")
    assert allocator(setting, on_gpu=False) == 0
    assert saving(setting, (Stage(moe=1),)) == 0  # no ZeRO-1, nothing is gathered
    assert 3e9 < allocator(V3.setting, on_gpu=True) < 6e9


def test_each_stream_that_computes_has_workspaces() -> None:
    chunks = (Stage(moe=2), Stage(moe=2))
    of_te = 5 * (32 << 20)
    streams = [
        computing_streams(replace(V3.setting, dispatcher=dispatcher), chunks, pairs)
        for dispatcher, pairs in (("two_hop", True), ("two_hop", False), ("deepep", True))
    ]
    assert streams == [2, 1, 1]
    two = allocator(V3.setting, on_gpu=True, streams=2)
    assert two - allocator(V3.setting, on_gpu=True) == of_te


def test_each_neighbour_in_the_pipeline_has_a_communicator() -> None:
    def further(**changes: object) -> int:
        ours, upstreams = (
            allocator(replace(V3.setting, executor=executor, **changes), on_gpu=True)
            for executor in ("ours", "upstream")
        )
        return ours - upstreams

    one = 2 * 32 * 16 * 128 * 1024
    assert (further(), further(pipeline=2), further(pipeline=1)) == (2 * one, one, 0)
    assert further(pipeline=2, data=2, expert=1) > one  # over NVLink there are more channels
