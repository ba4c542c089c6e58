"""What the parts of a plan are called, for people."""

from collections import Counter
from collections.abc import Iterable

from dsv3_plugin.planner.plan import MemoryPart, Moment, PhasePlan, RankPlan, TimePart
from dsv3_plugin.planner.stages import Stage

MEMORY: dict[MemoryPart, str] = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "fp8_copies": "FP8 copies of weights",
    "activations": "activations",
    "dispatch_buffers": "dispatch buffers",
    "logits": "logits",
    "saving": "saving",
    "cache": "cached latents",
    "allocator": "context, NCCL, allocator",
}

MOMENT: dict[Moment, str] = {
    "step": "forward and backward",
    "optimizer": "the optimizer's update",
    "saving": "a checkpoint being saved",
    "answering": "the answers of a round",
}

TIME: dict[TimePart, str] = {
    "gemm": "matrix products",
    "attention": "attention",
    "elementwise": "elementwise kernels",
    "quantise": "quantising",
    "dispatch_nvlink": "dispatch, NVLink",
    "dispatch_network": "dispatch, network",
    "tensor_parallel": "tensor parallelism",
    "context_parallel": "context parallelism",
    "pipeline": "pipeline: waiting",
    "data_parallel": "data-parallel reduction",
    "optimizer": "optimizer",
    "answering": "answers, at the least",
    "log_probs": "log-probabilities",
    "saving": "saving",
    "evaluation": "evaluation",
}

_KIND = {"embedding": "embedding", "dense": "dense", "moe": "MoE", "mtp": "MTP", "head": "head"}


def stage_text(stage: Stage) -> str:
    """What a stage holds: `embedding + 1 dense`."""
    held = (
        _KIND[kind] if kind in ("embedding", "head") else f"{number} {_KIND[kind]}"
        for kind, number in stage.kinds.items()
    )
    return " + ".join(held) or "nothing"


def stages_text(rank: RankPlan) -> str:
    """What a rank holds, equal stages that follow each other counted: `2 × 2 MoE`."""
    return held_text(rank.stages)


def held_text(stages: Iterable[Stage]) -> str:
    """What stages hold together, as `stages_text`."""
    texts = [stage_text(stage) for stage in stages]
    return ", ".join(
        f"{times} × ({text})" if times > 1 else text for text, times in Counter(texts).items()
    )


def roles(phase: PhasePlan) -> dict[int, str]:
    """The ranks that stand for all: pipeline rank → first, slowest, fullest, last."""
    named = {
        "first": phase.ranks[0],
        "slowest": phase.slowest,
        "fullest": phase.fullest,
        "last": phase.ranks[-1],
    }
    held: dict[int, list[str]] = {}
    for role, rank in named.items():
        held.setdefault(rank.pipeline_rank, []).append(role)
    return {rank: ", ".join(held[rank]) for rank in sorted(held)}
