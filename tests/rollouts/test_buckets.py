"""Pieces of a checkpoint: all of it, none too large, and never half of what is loaded together."""

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as some

from dsv3_plugin.checkpoint.names import hf_tensors
from dsv3_plugin.rollouts.buckets import buckets, loaded_with
from tests import oracles

NAMES = [
    name
    for name, *_ in hf_tensors(oracles.model_config(num_layers=2, moe_layer_freq="[0]*1+[1]*1"))
]
WITH_SCALES = [*NAMES, *(f"{name}_scale_inv" for name in NAMES if name.endswith("proj.weight"))]


@given(some.permutations(WITH_SCALES), some.integers(1, 10_000), some.randoms())
def test_whatever_the_order_and_the_size(names, most, random):
    sizes = {name: random.randint(1, 2000) for name in names}
    divided = buckets(sizes.items(), most)
    assert sorted(name for bucket in divided for name in bucket) == sorted(names)
    members = defaultdict(set)
    for name in names:
        members[loaded_with(name)].add(name)
    for bucket in divided:
        inside = {loaded_with(name) for name in bucket}
        assert set().union(*(members[unit] for unit in inside)) == {*bucket}
        assert sum(sizes[name] for name in bucket) <= most or len(inside) == 1


def test_what_is_loaded_together():
    layer = "model.layers.3.self_attn"
    expert, shared = "model.layers.3.mlp.experts.7", "model.layers.3.mlp.shared_experts"
    together = [
        (f"{layer}.q_a_proj.weight", f"{layer}.kv_a_proj_with_mqa.weight"),
        (f"{layer}.q_a_proj.weight", f"{layer}.q_a_proj.weight_scale_inv"),
        (f"{layer}.q_a_proj.weight_scale_inv", f"{layer}.kv_a_proj_with_mqa.weight_scale_inv"),
        (f"{layer}.kv_b_proj.weight", f"{layer}.kv_b_proj.weight_scale_inv"),
        (f"{expert}.gate_proj.weight", f"{expert}.up_proj.weight"),
        (f"{expert}.gate_proj.weight_scale_inv", f"{expert}.down_proj.weight"),
        (f"{shared}.gate_proj.weight", f"{shared}.up_proj.weight"),
    ]
    for one, other in together:
        assert loaded_with(one) == loaded_with(other)
    apart = [
        (f"{layer}.q_b_proj.weight", f"{layer}.q_a_proj.weight"),
        (f"{expert}.gate_proj.weight", "model.layers.3.mlp.experts.70.up_proj.weight"),
        (f"{shared}.gate_proj.weight", f"{shared}.down_proj.weight"),
        (f"{shared}.gate_proj.weight", f"{expert}.gate_proj.weight"),
        ("model.layers.3.mlp.gate.weight", "model.layers.3.mlp.gate.e_score_correction_bias"),
    ]
    for one, other in apart:
        assert loaded_with(one) != loaded_with(other)


def test_without_need_nothing_is_divided():
    assert len(buckets([(name, 10) for name in NAMES], 10**9)) == 1
    assert buckets([], 5) == []
