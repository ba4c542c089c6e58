"""Runs of `tiny` that are measured: schedules, recomputation, expert parallelism, ZeRO-1."""

from dataclasses import dataclass
from typing import Any

from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.stages import Stage
from dsv3_plugin.recipe.model import ModelConfig

RUNS: dict[str, tuple[int, list[str]]] = {
    "1f1b": (2, ["parallel.pipeline=2"]),
    "zbv": (2, ["parallel.pipeline=2", "pipeline.schedule=zbv"]),
    "dualpipe_v": (
        4,
        [
            "parallel.pipeline=2",
            "pipeline.schedule=dualpipe_v",
            "parallel.expert=2",
            "parallel.zero1=true",
        ],
    ),
    "interleaved": (
        2,
        ["parallel.pipeline=2", "pipeline.schedule=interleaved", "pipeline.virtual_stages=2"],
    ),
    "dualpipe": (
        4,
        ["parallel.pipeline=2", "pipeline.schedule=dualpipe", "parallel.expert=2"],
    ),
    "no pipeline": (2, ["parallel.expert=2", "parallel.zero1=true"]),
}
"""Name → ranks, and what is said of the run beyond the small recipe's own."""


@dataclass(frozen=True)
class MeasuredRun:
    """What was asked, and what each rank held.

    Attributes:
        stages: by pipeline rank.
        ranks: by rank of the world, bytes by part.
    """

    setting: Setting
    stages: tuple[tuple[Stage, ...], ...]
    ranks: list[dict[str, int]]


def setting_of(model: ModelConfig, **differences: Any) -> Setting:
    """A setting of one rank that divides nothing, but for what is said."""
    whole: dict[str, Any] = {
        "seq_length": 4096,
        "micro_batch": 1,
        "tensor": 1,
        "pipeline": 1,
        "context": 1,
        "expert": 1,
        "data": 1,
        "zero1": False,
        "backend": "local",
        "dtype": "fp32",
        "fp8": None,
        "moments": "fp32",
        "recompute": frozenset(),
        "dispatcher": "alltoall",
        "wire": "bf16",
        "ranks_per_node": 8,
        "executor": "ours",
    }
    return Setting(model=model, **whole | differences)
