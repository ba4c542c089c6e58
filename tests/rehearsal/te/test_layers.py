"""What TE's own layers keep, tensor by tensor on shapes, against the planner's tables."""

import json
from pathlib import Path

import pytest

from dsv3_plugin.planner.memory.activations import rows_kept, rows_owed
from dsv3_plugin.planner.memory.rows import bytes_of
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.recipe.load import load_model
from tests.rehearsal.te.rehearsed import rehearsed

pytestmark = pytest.mark.long

ALL = ["layernorm", "mla_up_proj", "moe_act"]
CASES = {
    "blockwise": {"fp8": "blockwise", "recompute": []},
    "blockwise, recomputed": {"fp8": "blockwise", "recompute": ALL},
    "SwiGLU in FP8": {"fp8": "blockwise", "recompute": ALL, "swiglu_in_fp8": True},
    "tensorwise, recomputed": {"fp8": "tensorwise", "recompute": ALL},
    "bf16, recomputed": {"fp8": None, "recompute": ALL},
    "an eighth of a sequence": {"fp8": "blockwise", "recompute": [], "context": 8},
    "an eighth, recomputed": {
        "fp8": "blockwise",
        "recompute": ["layernorm", "mla_up_proj", "core_attn"],
        "context": 8,
    },
}
PACKED = {
    "a pack": {"fp8": "blockwise", "recompute": [], "samples": [[1000, 24], [3072, 0]]},
    "a pack, all but attention recomputed": {
        "fp8": "blockwise",
        "recompute": ALL,
        "samples": [[1000, 24], [3072, 0]],
    },
    "a pack, recomputed": {
        "fp8": "blockwise",
        "recompute": [*ALL, "core_attn"],
        "samples": [[1000, 24], [3072, 0]],
    },
}
CASES |= PACKED
PACKS = {
    # Twice 4,096 tokens: three samples, with padding behind two of them.
    "a pack over two ranks": {
        "fp8": "blockwise",
        "recompute": [],
        "context": 2,
        "samples": [[1000, 24], [3072, 0], [3500, 596]],
    },
}
OF_RECIPES = {"layernorm": "norms"}
"""Upstream's recomputed modules → the recipe's, where they differ."""


@pytest.fixture(scope="module")
def kept() -> dict:
    cases = [{"name": name, **case} for name, case in (CASES | PACKS).items()]
    return rehearsed(Path(__file__).with_name("layers_on_shapes.py"), json.dumps(cases))


def planned(name: str) -> Setting:
    case = CASES[name]
    context = case.get("context", 1)
    return Setting(
        model=load_model("deepseek-v3"),
        seq_length=4096 * context,
        micro_batch=1,
        tensor=1,
        pipeline=1,
        context=context,
        expert=64,
        data=64 // context,
        zero1=True,
        backend="transformer_engine",
        dtype="bf16",
        fp8=case["fp8"],
        moments="fp32",
        recompute=frozenset(OF_RECIPES.get(module, module) for module in case["recompute"]),
        dispatcher="alltoall",
        wire="bf16",
        ranks_per_node=8,
        nvlink_domain=8,
        hide_shared_expert=None,
        executor="ours",
        fused_router="samples" not in case,
        packed="samples" in case,
        fp8_swiglu_input=case.get("swiglu_in_fp8", False),
    )


@pytest.mark.parametrize("kind", ["dense", "moe", "mtp"])
@pytest.mark.parametrize("name", CASES)
def test_a_layer_keeps_what_the_planner_says(kept: dict, name: str, kind: str):
    setting = planned(name)
    # Scales of padded rows, and counts of tokens.
    assert kept[name][kind] == pytest.approx(bytes_of(setting, rows_kept(setting, kind)), rel=2e-4)


@pytest.mark.parametrize("name", CASES)
def test_as_much_is_owed_as_the_planner_says(kept: dict, name: str):
    """Between the gradients of inputs and of weights, a whole model's."""
    setting = planned(name)
    owed = sum(bytes_of(setting, rows_owed(setting, kind)) for kind in ("dense", "moe", "mtp"))
    assert kept[name]["owed"] == pytest.approx(owed, rel=2e-3)


def test_attention_is_cudnns(kept: dict):
    """Not products of whole matrices of scores, for which fake tensors were taken once."""
    kernels = kept["blockwise"]["kernels"]
    assert kernels["attention_forward"] == kernels["attention_backward"] == 3


def test_a_group_of_heads_attends_in_two_chunks(kept: dict):
    """Three layers, eight groups; a backward again where it is asked for, and never besides."""
    chunks = 3 * 8 * 2
    kernels = kept["an eighth of a sequence"]["kernels"]
    assert kernels["attention_forward"] == kernels["attention_backward"] == chunks
    kernels = kept["an eighth, recomputed"]["kernels"]
    assert kernels["attention_forward"] == 2 * chunks


def test_all_samples_of_a_pack_attend_in_two_calls(kept: dict):
    """Three layers, two groups: every sample's first chunk together, and every second one."""
    kernels = kept["a pack over two ranks"]["kernels"]
    assert kernels["attention_forward"] == kernels["attention_backward"] == 3 * 2 * 2


def test_each_weight_takes_three_products(kept: dict):
    """Of its output, its input's gradient and its own; four experts count for themselves."""
    kernels = kept["blockwise"]["kernels"]
    moe_layers, experts = 2, 4
    assert kernels["grouped_gemm"] == 3 * moe_layers * 2 * experts
