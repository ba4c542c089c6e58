"""Flags of upstream that a recipe passes on."""

import pytest

from dsv3_plugin.machine import Machine
from dsv3_plugin.recipe.arguments import megatron_arguments
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.recipe.options import OPTIONS
from dsv3_plugin.recipe.rules import passed_flags
from tests.recipe.piped import PIPED
from tests.recipe.refused import refusal


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["stage=extend", "from=x", "megatron_args={pretrained-checkpoint: y}"],
            "contradicts from",
        ),
        (
            ["megatron_args={pipeline-model-parallel-layout: true}"],
            "pipeline-model-parallel-layout true contradicts pipeline.layout, which is null",
        ),
        (["megatron_args={global-batch-size: 3}"], "the batch size is curves.batch_size"),
        (["megatron_args={lr: 1e-3}"], "lr is curves.learning_rate in a recipe: say it there"),
        (["megatron_args={--lr_warmup_iters: 0}"], "lr-warmup-iters is curves.learning_rate"),
        (["megatron_args={train-iters: 3}"], "train-iters is training.steps in a recipe"),
        (["megatron_args={norm-epsilon: 1e-3}"], "norm-epsilon is model.layernorm_epsilon"),
    ],
)
def test_what_a_key_says_no_flag_says(overrides, sentence):
    assert sentence in refusal("pretrain/tiny", overrides)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["pipeline.layout=balanced", "megatron_args={pipeline-model-parallel-layout: Et|L}"],
            "pipeline-model-parallel-layout Et|L contradicts pipeline.layout, which is balanced",
        ),
        (
            ["pipeline.schedule=zbv", "megatron_args={context-parallel-size: 2}"],
            "context-parallel-size 2 contradicts parallel.context, which is 1",
        ),
        (
            ["megatron_args={trust-remote-code: true}"],
            "would run Python code that comes with a tokenizer, which is never done here",
        ),
        (
            ["megatron_args={allow-ambiguous-pad-tokens: true}"],
            "would take ordinary tokens for padding, and nothing is padded here",
        ),
        (
            ["megatron_args={transformer-impl: transformer_engine}"],
            "transformer-impl transformer_engine contradicts backend, which is local",
        ),
    ],
)  # fmt: skip
def test_what_a_key_of_a_pipeline_says_no_flag_says(overrides, sentence):
    assert sentence in refusal("pretrain/tiny", [*PIPED, *overrides])


def test_every_flag_that_a_key_says_is_that_keys_own():
    """What the command line has beside them is how this backend runs, and may be overridden."""
    machines = (Machine(0, False), Machine(4096, True))
    recipes = ("pretrain/tiny", "pretrain/deepseek-v3")
    emitted = {
        word.removeprefix("--")
        for name in recipes
        for machine in machines
        for word in megatron_arguments(load_recipe(name), machine, ("module", "spec"))
        if word.startswith("--")
    }
    said_once = {
        *passed_flags._OWNED,
        *passed_flags._said_in_the_recipe(load_recipe("pretrain/tiny")),
    }
    own = said_once | {*OPTIONS, "manual-gc-interval"}
    assert {flag for flag in emitted - own if not flag.startswith("no-")} == {
        "attention-dropout", "ckpt-format", "disable-bias-linear",
        "dist-ckpt-optim-fully-reshardable", "embedding-init-method-std", "exit-signal-handler",
        "expert-tensor-parallel-size", "hidden-dropout", "kv-channels", "moe-grouped-gemm",
        "moe-permute-fusion", "moe-router-dtype", "multi-latent-attention", "normalization",
        "position-embedding-type", "qk-layernorm", "recompute-granularity", "recompute-modules",
        "spec", "step-batch-size-schedule", "swiglu",
    }  # fmt: skip
