"""Bytes of weights, gradients, optimizer states and FP8 copies of a rank, as upstream keeps them.

Upstream's DistributedDataParallel gives the gradients of a chunk two buffers, one for all
parameters and one for routed experts, FP32 whatever the parameters are. With ZeRO-1 the parameters
lie in two more of the same layout (`DistributedOptimizer._compute_per_buffer_param_layout`, core
0.19.2): each begins at a multiple of 64 values, and a bucket ends at a multiple of 128 and of the
ranks that share it. Each of those owns an equal part of every bucket, and holds master weights and
moments of the parameters in it, without the padding.

There is one bucket a buffer: upstream divides it further only where it overlaps the reduction of
gradients with the backward, which no recipe's key asks for.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

from dsv3_plugin.planner.memory.tensors import Tensor, rank_chunks
from dsv3_plugin.planner.setting import BYTES, Setting
from dsv3_plugin.planner.stages import Stage

_MAIN = BYTES["fp32"]
"""Gradients and master weights."""
_STEP = 4
"""torch's Adam counts the steps of every parameter in an FP32 tensor; TE's once for a group."""
_PARAMETER_START, _BUCKET_END = 64, 128
"""What upstream rounds up to (optimizer/param_layout.py), in values."""


def weights(setting: Setting, stages: tuple[Stage, ...]) -> int:
    """Bytes of the parameters, and of the routers' biases and counts, which are no parameters."""
    values = sum(bucket.values for bucket in _buckets(setting, stages))
    return values * setting.width + _router_buffers(setting, stages)


def gradients(setting: Setting, stages: tuple[Stage, ...]) -> int:
    """Bytes of the FP32 buffers that gradients are added up in."""
    return sum(bucket.values for bucket in _buckets(setting, stages)) * _MAIN


def optimizer(
    setting: Setting, stages: tuple[Stage, ...], dense_rank: int = 0, expert_rank: int = 0
) -> int:
    """Bytes of master weights (where the parameters are no FP32) and of Adam's two moments.

    Args:
        setting: how the model is trained.
        stages: the rank's chunks, in its order.
        dense_rank: which of the ranks that share all parameters but the routed experts'. Padding
            lies at the end, so none owns more than the first.
        expert_rank: which of those that share the routed experts.
    """
    return _optimizer(_of_states(setting), stages, dense_rank, expert_rank)


@cache
def _optimizer(
    setting: Setting, stages: tuple[Stage, ...], dense_rank: int, expert_rank: int
) -> int:
    per_value = 2 * BYTES[setting.moments] + _master(setting)
    total = 0
    for bucket in _buckets(setting, stages):
        values, number = bucket.owned_by(expert_rank if bucket.routed else dense_rank)
        total += values * per_value
        if setting.backend == "local":
            total += number * _STEP
    return total


def _master(setting: Setting) -> int:
    """Bytes of a master weight beside the parameter; none where that is FP32 itself.

    With moments in BF16 the optimizer is TE's alone, which keeps of a master weight the 16 bits
    that the BF16 parameter lacks (`store_param_remainders`). In FP8, but for delayed scaling,
    upstream keeps master weights for it (`use_precision_aware_optimizer_no_fp8_or_ds_fp8`).
    """
    if setting.dtype == "fp32":
        return 0
    remainders = setting.moments == "bf16" and setting.fp8 in (None, "delayed")
    return _MAIN - setting.width if remainders else _MAIN


def fp8_copies(setting: Setting, stages: tuple[Stage, ...]) -> int:
    """Bytes of the quantised weights that Transformer Engine keeps from step to step.

    Of every matrix that is multiplied in FP8, one for the forward and a transposed one for the
    gradient of the input, each with its scales (`_fp8_workspaces` of TE's modules; upstream tells
    them which micro-batch is a step's first, so they are quantised once a step and kept). The
    recipes with one scale a tensor keep the transposed one on Hopper alone; it is counted.
    """
    return _fp8_copies(_of_states(setting), stages)


@cache
def _fp8_copies(setting: Setting, stages: tuple[Stage, ...]) -> int:
    if setting.fp8 is None:
        return 0
    return sum(
        tensor.number * (2 * tensor.values + _scales(setting.fp8, tensor.rows, tensor.columns))
        for chunk in rank_chunks(setting, stages)
        for tensor in chunk
        if tensor.fp8
    )


def largest_bucket(setting: Setting, stages: tuple[Stage, ...]) -> int:
    """Values of the largest bucket of gradients, padding included."""
    return max((bucket.values for bucket in _buckets(setting, stages)), default=0)


def _scales(recipe: str, rows: int, columns: int) -> int:
    """Bytes of the scales of a weight and of its transpose.

    blockwise: FP32, one for 128×128 values, the inner side rounded up to 4. mxfp8: one byte for 32
    values along the inner side, rounded up to 128 × 4 (TE 2.20, `get_scale_shape` of the two
    quantisers). The others have one FP32 for all.
    """
    if recipe == "blockwise":
        down, across = math.ceil(rows / 128), math.ceil(columns / 128)
        return 4 * (down * _up(across, 4) + across * _up(down, 4))
    if recipe == "mxfp8":
        there = _up(rows, 128) * _up(columns // 32, 4)
        return there + _up(rows // 32, 4) * _up(columns, 128)
    return 4


class _Run(NamedTuple):
    """Alike parameters, one after the other.

    Attributes:
        first: where the first begins, in values.
        values: of each.
        apart: from where one begins to where the next does.
        number: of them.
    """

    first: int
    values: int
    apart: int
    number: int

    @property
    def last(self) -> int:
        """Where the last ends."""
        return self.first + (self.number - 1) * self.apart + self.values

    def within(self, begin: int, end: int) -> tuple[int, int]:
        """How many values lie between two places, and of how many of the parameters."""
        one = max(0, (begin - self.first - self.values) // self.apart + 1)
        after = min(self.number, -((self.first - end) // self.apart))
        if one >= after:
            return 0, 0
        cut_off = max(0, begin - (self.first + one * self.apart))
        left_over = max(0, self.first + (after - 1) * self.apart + self.values - end)
        return (after - one) * self.values - cut_off - left_over, after - one


@dataclass(frozen=True)
class _Bucket:
    """Parameters of a chunk that lie one after the other.

    Attributes:
        runs: the parameters, in their order.
        values: all of it, padding included.
        ranks: how many own a part of it each; 1 where all own all.
        routed: routed experts' parameters, or all others.
    """

    runs: tuple[_Run, ...]
    values: int
    ranks: int
    routed: bool

    def owned_by(self, rank: int) -> tuple[int, int]:
        """How many values a rank owns, and of how many parameters."""
        part = self.values // self.ranks
        begin = rank % self.ranks * part
        owned = [run.within(begin, begin + part) for run in self.runs]
        return sum(values for values, _ in owned), sum(number for _, number in owned)


def _buckets(setting: Setting, stages: tuple[Stage, ...]) -> tuple[_Bucket, ...]:
    return _buckets_of(_of_states(setting), stages)


@cache
def _of_states(setting: Setting) -> Setting:
    """One setting for all that differ in what no state depends on, as a search varies it."""
    return replace(
        setting, micro_batch=1, recompute=frozenset(), dispatcher="alltoall", wire="bf16"
    )


@cache
def _buckets_of(setting: Setting, stages: tuple[Stage, ...]) -> tuple[_Bucket, ...]:
    return tuple(
        bucket
        for chunk in rank_chunks(setting, stages)
        for routed in (False, True)
        for bucket in _of_buffer(setting, [t for t in chunk if t.routed is routed], routed)
    )


def _of_buffer(setting: Setting, tensors: list[Tensor], routed: bool) -> Iterator[_Bucket]:
    """The buckets of a buffer, which takes its parameters from the last to the first."""
    ranks = 1
    if setting.zero1:
        ranks = setting.expert_replicas if routed else setting.dense_replicas
    together: list[Tensor] = []
    for tensor in reversed(tensors):
        if not tensor.own_bucket:
            together.append(tensor)
            continue
        if together:
            yield _bucket(setting, together, ranks, routed)
        yield _bucket(setting, [tensor], ranks, routed)
        together = []
    if together:
        yield _bucket(setting, together, ranks, routed)


def _bucket(setting: Setting, tensors: list[Tensor], ranks: int, routed: bool) -> _Bucket:
    start, end = (_PARAMETER_START, math.lcm(ranks, _BUCKET_END)) if setting.zero1 else (1, 1)
    runs, last = [], 0
    for tensor in tensors:
        if not tensor.number * tensor.values:
            continue
        run = _Run(_up(last, start), tensor.values, _up(tensor.values, start), tensor.number)
        runs.append(run)
        last = run.last
    return _Bucket(tuple(runs), _up(last, end), ranks, routed)


def _router_buffers(setting: Setting, stages: tuple[Stage, ...]) -> int:
    """Biases in FP32 and token counts in int64, one each per expert."""
    model = setting.model
    if not model.moe_router_enable_expert_bias:
        return 0
    layers = sum(stage.moe + stage.mtp * model.mtp_is_moe for stage in stages)
    return layers * (model.num_moe_experts or 0) * (4 + 8)


def _up(size: int, multiple: int) -> int:
    """The smallest multiple that is no smaller."""
    return -(-size // multiple) * multiple
