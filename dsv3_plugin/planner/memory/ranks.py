"""The memory of one pipeline rank, by part and by moment."""

from dataclasses import dataclass
from typing import get_args

from dsv3_plugin.planner.memory.activations import stage_bytes
from dsv3_plugin.planner.memory.answering import cache, engine_works_with
from dsv3_plugin.planner.memory.buffers import (
    allocator,
    computing_streams,
    dispatch_buffers,
    messages,
    saving,
)
from dsv3_plugin.planner.memory.peak import RankOrder, fullest
from dsv3_plugin.planner.memory.states import fp8_copies, gradients, optimizer, weights
from dsv3_plugin.planner.plan import MemoryPart, Moment
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.stages import Stage


@dataclass(frozen=True)
class RankMemory:
    """What a pipeline rank needs.

    Attributes:
        stages: what it holds.
        parts: part → bytes at the moment that needs most, in the order of `MemoryPart`.
        moments: moment → bytes in all.
    """

    stages: tuple[Stage, ...]
    parts: dict[MemoryPart, int]
    moments: dict[Moment, int]

    @property
    def total(self) -> int:
        return max(self.moments.values())


def rank_memory(
    setting: Setting, stages: tuple[Stage, ...], order: RankOrder, on_gpu: bool
) -> RankMemory:
    """Of a rank that holds these stages, its chunks in the order of `order`.

    Args:
        setting: how the model is trained.
        stages: the rank's chunks.
        order: of its actions in a step.
        on_gpu: where it computes.
    """
    always: dict[MemoryPart, int] = {
        "weights": weights(setting, stages),
        "gradients": gradients(setting, stages),
        "optimizer": optimizer(setting, stages),
        "fp8_copies": fp8_copies(setting, stages),
        "allocator": allocator(setting, on_gpu, computing_streams(setting, stages, order.pairs)),
    }
    held = fullest(order, [stage_bytes(setting, stage) for stage in stages])
    besides: dict[Moment, dict[MemoryPart, int]] = {
        "step": {
            "activations": int(held.layers) + messages(setting),
            "dispatch_buffers": dispatch_buffers(setting, stages, order.pairs),
            "logits": int(held.logits),
        },
        "optimizer": {},
        "saving": {"saving": saving(setting, stages)},
    }
    if setting.answering is not None:
        besides["answering"] = {
            "cache": cache(setting, setting.answering, stages),
            "activations": engine_works_with(setting, setting.answering, stages),
        }
    moments = {
        moment: sum(always.values()) + sum(parts.values()) for moment, parts in besides.items()
    }
    fullest_moment = max(moments, key=lambda moment: moments[moment])
    parts = always | besides[fullest_moment]
    return RankMemory(stages, {part: parts.get(part, 0) for part in get_args(MemoryPart)}, moments)
