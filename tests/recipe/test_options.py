"""What a run has of upstream's options without being asked."""

import pytest

from dsv3_plugin.machine import Machine
from dsv3_plugin.model import SPEC
from dsv3_plugin.recipe.arguments import megatron_arguments
from dsv3_plugin.recipe.load import load_model, load_recipe
from dsv3_plugin.recipe.options import OPTIONS, chosen, routes_as

GPUS = Machine(gpus=8, transformer_engine=True)
GPUS_ALONE = Machine(gpus=8, transformer_engine=False)
LAPTOP = Machine(gpus=0, transformer_engine=False)
V3 = "pretrain/deepseek-v3"


def had(name: str, machine: Machine, *overrides: str) -> set[str]:
    recipe = load_recipe(name, overrides)
    flags = {flag for flag in OPTIONS if chosen(flag, recipe, machine)}
    # The command line says the same.
    words = megatron_arguments(recipe, machine, SPEC)
    assert {flag for flag in OPTIONS if f"--{flag}" in words} == flags
    return flags


def test_the_full_recipe_has_them_all_on_its_machine():
    assert had(V3, GPUS) == set(OPTIONS)


def test_a_laptop_has_none():
    assert had("pretrain/tiny", LAPTOP) == set()


def test_a_gpu_without_transformer_engine_has_what_is_no_kernel_of_its():
    local = ["host=gpu", "data.seq_length=64"]
    assert had("pretrain/tiny", GPUS_ALONE, *local) == {"manual-gc"}
    sharded = [*local, "parallel.zero1=true"]
    gathers = "distrib-optim-fully-reshardable-mem-efficient"
    assert had("pretrain/tiny", GPUS_ALONE, *sharded) == {"manual-gc", gathers}


@pytest.mark.parametrize("flag", OPTIONS)
def test_a_recipe_can_leave_each_out(flag):
    without = had(V3, GPUS, f"megatron_args={{{flag}: false}}")
    assert without == set(OPTIONS) - {flag}
    assert chosen(flag, load_recipe("pretrain/tiny", [f"megatron_args={{{flag}: true}}"]), LAPTOP)


def test_the_loss_stays_as_it_is_in_fp32():
    plain = [
        "precision={dtype: fp32, fp8: null, moments: fp32, swiglu_input: null}",
        "dispatch.precision=bf16",
    ]
    assert "cross-entropy-loss-fusion" not in had(V3, GPUS, *plain)


@pytest.mark.parametrize(
    ("model", "alike"),
    [
        ("deepseek-v3", True),
        ("moonlight-16b-a3b", True),  # no groups
        ("kimi-k2", True),
        ("deepseek-v2-lite", True),
        ("deepseek-v2", False),  # a group counts by its best expert alone
        ("tiny", True),
    ],
)
def test_models_that_the_kernel_routes_as_they_were_made(model, alike):
    assert routes_as(load_model(model)) is alike


@pytest.mark.parametrize(("topk", "groups_of_a_token"), [(8, 2), (8, 8), (6, 2), (4, 4)])
def test_another_number_of_best_experts_is_routed_by_ours(topk, groups_of_a_token):
    v3 = load_model("deepseek-v3").to_mapping()
    changed = v3 | {"moe_router_topk": topk, "moe_router_group_topk": groups_of_a_token}
    assert not routes_as(type(load_model("deepseek-v3")).model_validate(changed))


def test_upstream_takes_them(upstream):
    args = upstream(load_recipe(V3), GPUS)
    assert args.moe_router_fusion
    assert args.cross_entropy_loss_fusion
    assert args.cross_entropy_fusion_impl == "native"
    assert args.manual_gc
    assert args.manual_gc_interval == 100
    assert args.distrib_optim_fully_reshardable_mem_efficient
    assert args.use_gloo_process_groups


def test_upstream_refuses_the_loss_of_transformer_engine(upstream):
    # When an upgrade of megatron-core lets it pass, it is worth another look.
    recipe = load_recipe(V3, ["megatron_args={cross-entropy-fusion-impl: te}"])
    with pytest.raises(AssertionError, match="stability issues"):
        upstream(recipe, GPUS)
