"""What upstream offers, no key of a recipe asks for, and is right where a run computes.

It is decided here once, for the command line and for the planner. `megatron_args` has the last
word: `moe-router-fusion: false` leaves that flag out.
"""

from collections.abc import Callable

from dsv3_plugin.machine import Machine
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.recipe.schema import Recipe


def fused_router(recipe: Recipe, machine: Machine) -> bool:
    """Scores, groups, choice and weights of experts are one kernel of Transformer Engine.

    Not for a model whose experts it would choose otherwise than the model was made for.
    """
    return bool(recipe.model.moe_layers) and _with_te(recipe, machine) and routes_as(recipe.model)


def routes_as(model: ModelConfig) -> bool:
    """Whether the kernel scores groups, and counts for the balance loss, as the model does.

    It adds up the best (experts per token // groups per token) scores of a group. DeepSeek-V3 adds
    up two (arXiv 2412.19437, section 2.1.2), DeepSeek-V2 takes the best alone and counts the chosen
    experts in its loss.

    Args:
        model: or upstream's configuration of one, which has the same fields.
    """
    if model.moe_router_num_groups is None:
        return True
    best = model.moe_router_topk // model.moe_router_group_topk
    return model.moe_router_score_function == "sigmoid" and best == 2


def fused_loss(recipe: Recipe, machine: Machine) -> bool:
    """The steps of the cross-entropy are compiled together (upstream's `native` fusion).

    It makes gradients of logits in BF16 whatever the logits are, so it is for BF16 alone. (TE's
    kernel, which would do without logits in FP32, upstream refuses in 0.19.2 as unstable.)
    """
    return _with_te(recipe, machine) and recipe.precision.dtype == "bf16"


def collects_garbage_together(recipe: Recipe, machine: Machine) -> bool:
    """Python's garbage is collected on all ranks in the same step.

    Left alone, every rank looks for it at another moment, and each time all others wait.
    """
    return recipe.on_gpu(machine)


def gathers_on_hosts(recipe: Recipe, machine: Machine) -> bool:
    """A save gathers optimizer states over gloo, in the memory of one host of each group.

    Otherwise whole buckets are gathered in FP32 on the devices of all ranks. On a CPU it is the
    same memory.
    """
    return recipe.parallel.zero1 and recipe.on_gpu(machine)


Flag = str
OPTIONS: dict[Flag, Callable[[Recipe, Machine], bool]] = {
    "moe-router-fusion": fused_router,
    "cross-entropy-loss-fusion": fused_loss,
    "manual-gc": collects_garbage_together,
    "distrib-optim-fully-reshardable-mem-efficient": gathers_on_hosts,
}
"""Upstream's flags, and where they are right."""


def chosen(flag: Flag, recipe: Recipe, machine: Machine) -> bool:
    """Whether a run has one of the options: as `megatron_args` says, else where it is right."""
    said = recipe.passed_flags.get(flag)
    return OPTIONS[flag](recipe, machine) if said is None else said is True


def _with_te(recipe: Recipe, machine: Machine) -> bool:
    return recipe.resolved_backend(machine) == "transformer_engine"
