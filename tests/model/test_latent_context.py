"""Sequences and heads divided over ranks: logits, losses, every gradient are those of one rank."""

import pytest
import torch

from tests import whole_tensors
from tests.gloo_ranks import run_ranks
from tests.model.context_ranks import Case, divided, part_of, whole

SELECTIVE = {"recompute_granularity": "selective"}
YARN = {
    "rope_type": "yarn",
    "rotary_scaling_factor": 4.0,
    "original_max_position_embeddings": 16,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
ALL_EXPERTS = {
    "moe_ffn_hidden_size": 24,
    "moe_shared_expert_intermediate_size": 48,
    "moe_router_topk": 16,
    "moe_router_num_groups": None,
    "moe_router_group_topk": None,
}
DENSE = {
    "moe_layer_freq": [0, 0, 0],
    "num_moe_experts": None,
    "moe_router_num_groups": None,
    "moe_router_group_topk": None,
    "moe_router_enable_expert_bias": False,
    "moe_aux_loss_coeff": 0.0,
    "moe_router_load_balancing_type": "none",
}
SEQUENCE_PARALLEL = {"sequence_parallel": True}
PACK = ((13, 3), (8, 0), (1, 7), (20, 4))

CASES = {
    2: {
        "as it is": Case(),
        "up-projections and norms again": Case(
            config=SELECTIVE | {"recompute_modules": ["mla_up_proj", "layernorm"]}
        ),
        "core attention again": Case(config=SELECTIVE | {"recompute_modules": ["core_attn"]}),
        "both again": Case(
            config=SELECTIVE | {"recompute_modules": ["mla_up_proj", "core_attn", "moe"]}
        ),
        "whole layers again": Case(
            config={
                "recompute_granularity": "full",
                "recompute_method": "uniform",
                "recompute_num_layers": 1,
            }
        ),
        "YaRN": Case(model=YARN),
        "no Q latent, softmax router": Case(
            model={
                "q_lora_rank": None,
                "moe_router_score_function": "softmax",
                "moe_router_enable_expert_bias": False,
                "moe_router_pre_softmax": True,
            }
        ),
        "two tokens ahead": Case(model={"mtp_num_layers": 2}),
        "a pack with padding": Case(samples=PACK),
        "a pack, up-projections again, YaRN": Case(
            model=YARN, samples=PACK, config=SELECTIVE | {"recompute_modules": ["mla_up_proj"]}
        ),
        "a beginning that does not count": Case(masked=19),
        "sequences with padding": Case(padded=(17, 4)),
        "heads on two ranks": Case(context=1, tensor=2, model=DENSE),
        "heads and tokens on two ranks": Case(context=1, tensor=2, config=SEQUENCE_PARALLEL),
        "the same with padding": Case(
            context=1, tensor=2, config=SEQUENCE_PARALLEL, padded=(17, 4)
        ),
        # Every token to all experts: with a choice, another rounding chooses others.
        "BF16": Case(dtype=torch.bfloat16, model=ALL_EXPERTS),
    },
    4: {
        "as it is": Case(context=4, model={"num_attention_heads": 6}),
        "a pack with padding": Case(context=4, samples=((13, 3), (8, 0), (1, 7))),
        "experts on two ranks of a sequence": Case(expert=2),
        "experts on all ranks": Case(expert=4),
        "tensor parallel, no experts": Case(tensor=2, model=DENSE),
        "tensor parallel": Case(tensor=2, config=SEQUENCE_PARALLEL),
        "tensor parallel, a pack with padding": Case(
            tensor=2, config=SEQUENCE_PARALLEL, samples=PACK
        ),
        "tensor parallel, sequences with padding": Case(
            tensor=2, config=SEQUENCE_PARALLEL, padded=(17, 4)
        ),
    },
}


@pytest.fixture(scope="module", params=CASES)
def answers(request, tmp_path_factory):
    """By case, what the one rank and what each of several answered; one start of processes for all
    cases."""
    scratch = tmp_path_factory.mktemp(f"context{request.param}")
    cases = CASES[request.param]
    [alone] = run_ranks(1, whole, cases, scratch=scratch, timeout_s=240)
    weights = scratch / "weights.pt"
    torch.save({name: given for name, (_, given) in alone.items()}, weights)
    ranks = run_ranks(request.param, divided, cases, weights, scratch=scratch, timeout_s=240)
    return cases, {name: (alone[name][0], [rank[name] for rank in ranks]) for name in cases}


def test_logits_losses_and_gradients_are_those_of_one_rank(answers):
    cases, answered = answers
    for name, case in cases.items():
        check(name, case, *answered[name])


def check(name, case, alone, ranks):
    near = 0.03 if case.dtype == torch.bfloat16 else 1e-5
    gradients = whole_tensors.whole(alone.gradients)
    for mine in ranks:
        same(name, "loss", mine.loss, alone.loss, near)
        same(name, "MTP loss", mine.ahead, alone.ahead, near)
        same(name, "logits", mine.logits, alone.logits, near)
        assert {part[0] for part in mine.gradients} == gradients.keys()
        for weight, offset, _, gradient in mine.gradients:
            same(name, weight, gradient, part_of(gradients, weight, offset, gradient.shape), near)
        for router, bias in alone.biases.items():
            same(name, router, mine.biases[router], bias, near)


def same(case, what, actual, expected, tolerance):
    assert expected.abs().max() > 0, f"{case}: {what} says nothing"
    error = (actual - expected).norm() / expected.norm()
    assert error < tolerance, f"{case}: {what} differs by {error:.2e}"
