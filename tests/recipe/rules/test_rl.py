"""Answers, and the loss of them."""

import pytest

from dsv3_plugin.recipe.load import load_recipe
from tests.recipe.refused import refusal


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["grpo={on_mismatch: correct, old: engine}"],
            "all would weigh the same: set grpo.old to trainer, or grpo.on_mismatch to warn.",
        ),
        (
            ["grpo={on_mismatch: correct, correction: mask, correction_low: 3}"],
            "grpo.correction_low 3 is more than grpo.correction_high 2, between which no ratio",
        ),
        (
            ["grpo.correction=sequence"],
            "grpo.correction sequence is of a correction that is not made: set grpo.on_mismatch to "
            "correct and grpo.old to trainer, or leave it out.",
        ),
        (
            ["grpo={old: engine, correction_high: 5}"],
            "grpo.correction_high 5 is of a correction that is not made",
        ),
        (
            ["grpo={on_mismatch: correct, correction_low: 0.1}"],
            "grpo.correction_low 0.1 is of mask, and grpo.correction is token: set that to mask",
        ),
        (
            ["grpo.reference_interval=5"],
            "of a divergence that has no weight: give grpo.kl_weight, or set it to null.",
        ),
        (["grpo.kl=k1"], "give grpo.kl_weight, or set it to k3."),
    ],
)
def test_losses_that_cannot_be_or_have_no_effect(overrides, sentence):
    assert sentence in refusal("rl/tiny", overrides)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["rollouts.partial=4"],
            "rollouts.partial 4 is no less than rollouts.max_tokens 4, and eve",
        ),
        (
            ["rollouts.partial=2", "grpo.routing_replay=true"],
            "other weights read the prompt and the beginning again, by experts of their own: leave",
        ),
        (
            ["rollouts.partial=2", "grpo.on_mismatch=stop"],
            "rollouts.partial: 2 trains on answers of older weights",
        ),
    ],
)
def test_answers_that_cannot_go_on_in_the_next_round(overrides, sentence):
    assert sentence in refusal("rl/tiny", overrides)


@pytest.mark.parametrize(
    "changes",
    [
        ["grpo={on_mismatch: correct, correction: mask, correction_low: 0.1}"],
        ["rollouts.async=1", "grpo.correction=sequence"],
        ["rollouts.async=1", "grpo.old=engine"],
        ["rollouts={partial: 2, kind: openai, url: 'http://127.0.0.1:1', async: 1}"],
        ["rollouts={partial: 2, dynamic_sampling: 3}"],
        ["grpo={old: engine, kl_weight: 0.1, kl: k1, reference_interval: 5}"],
    ],
)
def test_what_has_an_effect_is_taken(changes):
    load_recipe("rl/tiny", changes)


def test_routing_is_replayed_where_there_are_experts():
    replay = ["grpo.routing_replay=true"]
    of_experts = (
        "num_moe_experts", "moe_ffn_hidden_size", "moe_router_topk", "moe_router_num_groups",
        "moe_router_group_topk", "moe_shared_expert_intermediate_size",
    )  # fmt: skip
    dense = [f"model.{key}=null" for key in of_experts] + ["model.moe_layer_freq=[0]*2"]
    sentence = "needs a model with experts: set it to false"
    assert sentence in refusal("rl/tiny", [*replay, *dense])
    load_recipe("rl/tiny", ["rollouts.kind=openai", "rollouts.url=http://127.0.0.1:1", *replay])
