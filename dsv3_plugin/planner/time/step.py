"""A step after its pipeline: gradients reduced, weights updated; saving and evaluation."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.planner.counts import parameter_counts
from dsv3_plugin.planner.memory.tensors import rank_chunks
from dsv3_plugin.planner.setting import BYTES, Setting
from dsv3_plugin.planner.stages import Stage
from dsv3_plugin.planner.time.kernels import memory_rate, transfer
from dsv3_plugin.planner.time.pipeline_times import PipelineTimes
from dsv3_plugin.planner.time.stage_times import DISPATCH, Parts, StageTimes, stage_times
from dsv3_plugin.schedules.placement import Placement

_FP32 = BYTES["fp32"]


@dataclass(frozen=True)
class Step:
    """A step in time.

    Attributes:
        seconds: of a step that neither saves nor evaluates.
        parts: those seconds by part, of the rank that computes longest.
        mean_parts: the same as a mean of all ranks, by which to compare two ways of running: the
            longest may be another rank in each.
        busy: per pipeline rank, seconds that it computes or sends what nothing hides.
        work: per pipeline rank, seconds of its passes run alone.
    """

    seconds: float
    parts: Parts
    mean_parts: Parts
    busy: tuple[float, ...]
    work: tuple[float, ...]


def step(
    setting: Setting,
    cluster: Cluster,
    stages: Sequence[Stage],
    placement: Placement,
    micro_batches: int,
    pipeline: PipelineTimes,
) -> Step:
    """A step of so many micro-batches.

    Args:
        setting: how the model is trained.
        cluster: where.
        stages: of the model, in its order.
        placement: which rank holds which of them.
        micro_batches: of a data-parallel rank.
        pipeline: its schedule in time.
    """
    held = [
        [stages[placement.model_stage(stage)] for stage in chunks] for chunks in placement.chunks
    ]
    each = micro_batches / placement.copies
    times = [[stage_times(setting, cluster, stage) for stage in chunks] for chunks in held]
    after = [
        _after_pipeline(setting, cluster, *both, placement)
        for both in zip(held, times, strict=True)
    ]
    longest = max(after, key=lambda part: part.total())
    by_rank = [
        _pipeline_parts(times[rank], each, busy, pipeline.makespan) + longest
        for rank, busy in enumerate(pipeline.busy)
    ]
    mean: Parts = Counter()
    for parts in by_rank:
        for part, value in parts.items():
            mean[part] += value / len(by_rank)
    return Step(
        seconds=pipeline.makespan + longest.total(),
        parts=max(zip(pipeline.busy, by_rank, strict=True), key=lambda rank: rank[0])[1],
        mean_parts=mean,
        busy=pipeline.busy,
        work=tuple(each * sum(stage.total for stage in chunks) for chunks in times),
    )


def _pipeline_parts(
    times: Sequence[StageTimes], micro_batches: float, busy: float, makespan: float
) -> Parts:
    """A rank's time in the pipeline by part; messages have what is left of it after all else."""
    parts: Parts = Counter()
    for stage in times:
        for part, value in stage.parts.items():
            parts[part] += micro_batches * value
    exchanged = sum(parts[part] for part in DISPATCH)
    exposed = busy - (parts.total() - exchanged)
    for part in DISPATCH:
        if exchanged:
            parts[part] *= max(0.0, exposed) / exchanged
    parts["pipeline"] = makespan - busy
    return parts


def _after_pipeline(
    setting: Setting,
    cluster: Cluster,
    held: Sequence[Stage],
    times: Sequence[StageTimes],
    placement: Placement,
) -> Parts:
    """Reduction of a rank's gradients, its update, and the gathering of its weights."""
    dense = routed = 0
    for chunk in rank_chunks(setting, tuple(held)):
        for tensor in chunk:
            if tensor.routed:
                routed += tensor.number * tensor.values
            else:
                dense += tensor.number * tensor.values
    reduced = 0.0
    updated = 0.0
    groups = (
        (dense, setting.dense_replicas, setting.tensor),
        (routed, setting.expert_replicas, setting.expert),
    )
    for values, ranks, stride in groups:
        if setting.zero1:
            # Gradients scattered in FP32, parameters gathered as they are trained.
            reduced += _collective(cluster, values * (_FP32 + setting.width), ranks, stride)
            updated += values / ranks
        else:
            reduced += _collective(cluster, 2 * values * _FP32, ranks, stride)
            updated += values
    if placement.copies == 2:
        # Either copy's gradients go to the other's rank.
        reduced += transfer((dense + routed) * _FP32, cluster, "network")
    if setting.overlapped_reduction:
        # Gradients are whole in the last micro-batch's backward, and travel beside it.
        reduced = max(0.0, reduced - sum(time.input + time.weight for time in times))
    # Norm and update read the gradient; master weights and two moments are read and written.
    moved = updated * (2 * _FP32 + 2 * _FP32 + 4 * BYTES[setting.moments] + setting.width)
    moved += _FP32 * (dense + routed)  # gradients set to zero
    return Counter({"data_parallel": reduced, "optimizer": moved / memory_rate(cluster)})


def _collective(cluster: Cluster, sent: float, ranks: int, stride: int) -> float:
    """Seconds of a ring over `ranks` that lie `stride` apart; `sent` bytes before the ring's share.

    A ring that has several ranks on a node crosses between nodes over as many network cards.
    """
    if ranks == 1:
        return 0.0
    nearby = min(ranks, max(1, cluster.nvlink_domain // stride))
    sent *= (ranks - 1) / ranks
    within = transfer(sent, cluster, "nvlink", count=ranks - 1)
    if nearby == ranks:
        return within
    between = transfer(sent / nearby, cluster, "network", count=ranks - 1)
    return max(between, within) if nearby > 1 else between


def evaluation_seconds(
    setting: Setting,
    cluster: Cluster,
    stages: Sequence[Stage],
    placement: Placement,
    micro_batches: int,
) -> float:
    """One batch forward only: as long as the busiest rank takes, and the way through the others."""
    forwards = [stage_times(setting, cluster, stage).forward for stage in stages]
    busiest = max(
        sum(forwards[placement.model_stage(stage)] for stage in chunks) / placement.copies
        for chunks in placement.chunks
    )
    return micro_batches * busiest + sum(forwards) - busiest


def checkpoint_bytes(setting: Setting) -> int:
    """Bytes of a checkpoint: weights as they are trained, FP32 master weights and two moments.

    Moments are saved in FP32 whatever they are kept in; a model trained in FP32 is its own master.
    """
    model = setting.model
    counts = parameter_counts(model)
    copies = (model.mtp_num_layers or 0) * model.vocab_size * model.hidden_size
    values = counts.total - copies * (1 if model.share_embeddings_and_output_weights else 2)
    return values * (setting.width + (2 if setting.dtype == "fp32" else 3) * _FP32)


def saving_seconds(setting: Setting, cluster: Cluster) -> float:
    """Writing a checkpoint while training waits, all nodes at once."""
    nodes = max(1, setting.processes // cluster.gpus_per_node)
    return checkpoint_bytes(setting) / (cluster.storage_gb_per_second * 1e9 * nodes)
