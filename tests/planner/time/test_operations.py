"""What a rank computes against the exact counts, and what each choice adds or divides."""

from dataclasses import replace

import pytest

from dsv3_plugin.planner.counts import flops_per_token
from dsv3_plugin.planner.time.operations import Attention, Gemm, Message, Move, passes
from dsv3_plugin.recipe.load import load_model
from tests.planner.settings import setting_of

V3 = setting_of("pretrain/deepseek-v3", "recompute=[]")
MODELS = ("tiny", "deepseek-v2-lite", "deepseek-v3", "moonlight-16b-a3b", "kimi-k2")


def total_flops(operations):
    return sum(op.flops for op in operations if isinstance(op, Gemm | Attention))


def _gemm_flops(operations):
    return sum(op.flops for op in operations if isinstance(op, Gemm))


@pytest.mark.parametrize("name", MODELS)
def test_flops_are_those_that_are_counted(name):
    """`counts.py` knows weights; here are matrices. MTP's head runs in the stage of the head."""
    setting = replace(V3, model=load_model(name))
    tokens = setting.tokens
    depths = setting.model.mtp_num_layers or 0
    counted = {layer.kind: layer for layer in flops_per_token(setting.model, 4096).layers}
    head = counted["head"].matmul
    for kind, layer in counted.items():
        matmul = layer.matmul
        if kind == "mtp":
            matmul -= head
        if kind == "head":
            matmul *= 1 + depths
        found = passes(setting, kind)
        assert total_flops(found.forward) == pytest.approx((matmul + layer.attention) * tokens)
        assert _gemm_flops(found.input) == pytest.approx(matmul * tokens)
        assert _gemm_flops(found.weight) == pytest.approx(matmul * tokens)
        assert not any(isinstance(op, Attention) for op in found.weight)


@pytest.mark.parametrize("kind", ["dense", "moe", "mtp", "head"])
def test_tensor_parallel_ranks_share_the_work(kind):
    """Each computes its part: of heads and columns, or of tokens where a matrix is whole."""
    alone, shared = passes(V3, kind), passes(replace(V3, tensor=4), kind)
    for one, each in zip(
        (alone.forward, alone.input, alone.weight),
        (shared.forward, shared.input, shared.weight),
        strict=True,
    ):
        assert 4 * total_flops(each) == pytest.approx(total_flops(one))
    assert not [op for op in alone if op.part == "tensor_parallel"]
    assert [op for op in shared if op.part == "tensor_parallel"]


def test_context_parallel_ranks_share_the_sequence_and_send_latents():
    alone, shared = passes(V3, "moe"), passes(replace(V3, context=8), "moe")

    def up(operations):
        return [op for op in operations if isinstance(op, Gemm) and op.name == "kv_up"]

    def others(layer):
        return total_flops(layer) - total_flops(up(layer))

    assert 8 * others(shared) == pytest.approx(others(alone))
    # Every rank makes the keys and values of the whole sequence, and in the backward once more.
    assert [len(up(half)) for half in (shared.forward, shared.input, shared.weight)] == [1, 2, 1]
    assert {op.flops for op in up(shared)} == {op.flops for op in up(alone)}
    assert {op.format for op in up(shared)} == {"bf16"}
    # Latents of seven eighths of the sequence come by, and their gradient: 512 + 64 in BF16.
    for half in (shared.forward, shared.input):
        sent = [op.bytes for op in half if op.part == "context_parallel"]
        assert sent == [7 * 512 * (512 + 64) * 2]
    # Not kept, they come by once more.
    again = passes(replace(V3, context=8, recompute=frozenset({"mla_up_proj"})), "moe")
    messages = [op for op in again.input if op.part == "context_parallel"]
    assert len(messages) == 2


@pytest.mark.parametrize(
    ("name", "again"),
    [
        ("core_attn", {"core"}),
        ("mla_up_proj", {"q_up", "kv_up"}),
        ("shared_experts", {"shared_fc1", "shared_fc2"}),
        ("moe_act", set()),
        ("norms", set()),
        (
            "moe",
            {"router", "shared_fc1", "shared_fc2", "experts_fc1", "experts_fc2"}
            | {"dispatch", "combine"},
        ),
    ],
)
def test_recomputing_runs_a_part_once_more_in_the_backward(name, again):
    kept, recomputed = (
        passes(replace(V3, recompute=frozenset(names)), "moe") for names in ((), (name,))
    )
    assert recomputed.forward == kept.forward
    assert recomputed.weight == kept.weight
    more = list(recomputed.input)
    for op in kept.input:
        more.remove(op)
    assert {op.name for op in more if isinstance(op, Gemm | Attention | Message)} == again
    assert more


def test_fp8_quantises_both_operands_and_leaves_router_and_head_alone():
    formats = {op.name: op.format for kind in ("moe", "head") for op in passes(V3, kind).forward
               if isinstance(op, Gemm)}  # fmt: skip
    assert {name for name, format in formats.items() if format != "fp8"} == {"router", "head"}
    plain = passes(replace(V3, fp8=None), "dense")
    assert not [op for op in plain if op.part == "quantise"]


def test_tokens_travel_in_the_wires_format_out_and_in_bf16_back():
    sent = {
        (op.name, op.link): op.bytes for op in passes(V3, "moe").forward if isinstance(op, Message)
    }
    # One byte and a scale per 128 against two bytes.
    for link in ("network", "nvlink"):
        out, back = sent["dispatch", link], sent["combine", link]
        assert back / out == pytest.approx(2 / (1 + 4 / 128))
    # Fewer than 4 of 8 nodes, of 4096 tokens of 7168 values.
    assert 3.1 < sent["combine", "network"] / (4096 * 7168 * 2) < 3.5


def test_an_imbalance_is_work_of_the_experts_alone():
    balanced, skewed = passes(V3, "moe"), passes(replace(V3, imbalance=1.25), "moe")
    for one, other in zip(balanced.forward, skewed.forward, strict=True):
        if isinstance(one, Gemm):
            ratio = 1.25 if one.name.startswith("experts") else 1.0
            assert other.flops == pytest.approx(ratio * one.flops)


def _bytes_moved(operations):
    return sum(op.bytes for op in operations if isinstance(op, Move))


def test_swiglus_input_in_fp8_is_cast_and_cast_back():
    for again, times in (("[]", 1), ("[moe_act]", 2)):
        plain, kept = (
            passes(
                setting_of(
                    "pretrain/deepseek-v3", f"recompute={again}", f"precision.swiglu_input={choice}"
                ),
                "moe",
            )
            for choice in ("null", "fp8")
        )
        experts, shared = 32768 * 4096 * 3, 4096 * 4096 * 3
        more = _bytes_moved(kept.forward) - _bytes_moved(plain.forward)
        assert more == pytest.approx(experts + shared)
        back = _bytes_moved(kept.input) - _bytes_moved(plain.input)
        assert back == pytest.approx(times * experts + shared)


def test_fused_kernels_move_less():
    off = "megatron_args={moe-router-fusion: false, cross-entropy-loss-fusion: false}"
    fused, plain = setting_of("pretrain/deepseek-v3"), setting_of("pretrain/deepseek-v3", off)
    routed = 4096 * 256
    for half in ("forward", "input"):
        moved = [_bytes_moved(getattr(passes(s, "moe"), half)) for s in (plain, fused)]
        assert moved[0] - moved[1] == pytest.approx((80 - 2 * 13) * routed)  # and the balance loss
    logits = 2 * 4096 * 129280  # the model's, and multi-token prediction's
    for half, less in (("forward", 38 - 22), ("input", 22 - 18)):
        moved = [_bytes_moved(getattr(passes(s, "head"), half)) for s in (plain, fused)]
        assert moved[0] - moved[1] == pytest.approx(less * logits)
