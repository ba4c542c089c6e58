"""Flags of upstream that a recipe passes on in `megatron_args`."""

from collections.abc import Iterator

from dsv3_plugin.recipe.continued import Continued
from dsv3_plugin.recipe.fields import FIELDS
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.recipe.yaml_text import quoted

_KEYS = {
    "curves.learning_rate": "lr min-lr lr-decay-style lr-decay-iters lr-decay-samples "
    "lr-warmup-init lr-warmup-fraction lr-warmup-iters lr-warmup-samples lr-wsd-decay-style "
    "lr-wsd-decay-iters lr-wsd-decay-samples override-opt-param-scheduler "
    "use-checkpoint-opt-param-scheduler",
    "curves.router_bias_speed": "moe-router-bias-update-rate",
    "curves.mtp_weight": "mtp-loss-scaling-factor",
    "training.steps": "train-samples train-iters",
    "training.seed": "seed",
    "training.eval_interval": "eval-interval",
    "training.eval_steps": "eval-iters eval-global-batch-size",
    "training.log_interval": "log-interval",
    "data.corpus": "data-path train-data-path valid-data-path split",
    "data.tokenizer": "tokenizer-model tokenizer-type",
    "optimizer": "optimizer adam-beta1 adam-beta2 adam-eps weight-decay clip-grad",
    "precision": "bf16 fp16 fp8-format fp8-recipe use-precision-aware-optimizer exp-avg-dtype "
    "exp-avg-sq-dtype",
    "parallel.zero1": "use-distributed-optimizer",
    "parallel.timeout_minutes": "distributed-timeout-minutes",
    "pipeline": "num-layers-per-virtual-pipeline-stage num-virtual-stages-per-pipeline-rank",
    "dispatch.kind": "moe-token-dispatcher-type moe-flex-dispatcher-backend",
    "host": "distributed-backend",
    "checkpoint.directory": "save load",
    "checkpoint.interval": "save-interval",
    "checkpoint.async_save": "async-save async-strategy use-persistent-ckpt-worker",
    "checkpoint.parallel_load": "ckpt-fully-parallel-load",
    "directory": "tensorboard-dir",
}
_OWNED = {flag: key for key, flags in _KEYS.items() for flag in flags.split()} | {
    field.flag: f"model.{field.ours}" for field in FIELDS if field.flag is not None
}
"""Flags that a key of the recipe stands for, whatever it says; the key."""


def said_once(recipe: Recipe) -> Iterator[str]:
    """What a key of the recipe says, no flag says otherwise."""
    flags = recipe.passed_flags
    if flags.get("step-batch-size-schedule") or flags.get("global-batch-size"):
        yield "the batch size is curves.batch_size, not a flag in megatron_args"
    if flags.get("allow-ambiguous-pad-tokens"):
        yield (
            "megatron_args: allow-ambiguous-pad-tokens would take ordinary tokens for padding, and "
            "nothing is padded here: leave it out"
        )
    if flags.get("trust-remote-code"):
        yield (
            "megatron_args: trust-remote-code would run Python code that comes with a tokenizer, "
            "which is never done here: leave it out"
        )
    for flag, passed in flags.items():
        if flag in _OWNED and passed is not False:
            yield f"megatron_args: {flag} is {_OWNED[flag]} in a recipe: say it there, not here"
    for flag, (key, value) in _said_in_the_recipe(recipe).items():
        if flags.get(flag, False) not in (False, value):
            yield (
                f"megatron_args: {flag} {_said(flags[flag])} contradicts {key}, which is "
                f"{_said(value)}: say it "
                "there, not here"
            )


def _said(value: object) -> str:
    return value if isinstance(value, str) else quoted(value)


def _said_in_the_recipe(recipe: Recipe) -> dict[str, tuple[str, int | str | None]]:
    """Flags that a key of the recipe answers for: (key, its value)."""
    parallel = recipe.parallel
    began = {}
    if isinstance(recipe, Continued):
        began = {"pretrained-checkpoint": ("from", recipe.from_)}
    return began | {
        "tensor-model-parallel-size": ("parallel.tensor", parallel.tensor),
        "pipeline-model-parallel-size": ("parallel.pipeline", parallel.pipeline),
        "pipeline-model-parallel-layout": ("pipeline.layout", recipe.pipeline.layout),
        "context-parallel-size": ("parallel.context", parallel.context),
        "expert-model-parallel-size": ("parallel.expert", parallel.expert),
        "micro-batch-size": ("training.micro_batch_size", recipe.training.micro_batch_size),
        "seq-length": ("data.seq_length", recipe.data.seq_length),
        "transformer-impl": ("backend", recipe.backend),
    }
