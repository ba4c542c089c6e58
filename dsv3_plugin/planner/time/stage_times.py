"""Seconds of a pipeline stage on one micro-batch, by pass and by part."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.planner.counts import Kind
from dsv3_plugin.planner.plan import TimePart
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.stages import Stage
from dsv3_plugin.planner.time.kernels import seconds, transfer
from dsv3_plugin.planner.time.operations import LinkName, Operation, passes, shared_expert
from dsv3_plugin.schedules.costs import StageCosts

Parts = Counter[TimePart]
"""Seconds by part."""

DISPATCH: tuple[TimePart, ...] = ("dispatch_nvlink", "dispatch_network")
_COMMUNICATION_MULTIPROCESSORS = 20
"""That send and receive while the others compute (report, section 3.2.2)."""
_NOT_OVERLAPPED = 0.1
"""Share of the shorter side of a pair that does not run beside the longer one: DeepSeek's published
trace of a pair spans 129 ms, its compute stream is busy for 118 ms and communication takes 114."""


@dataclass(frozen=True)
class LayerTimes:
    """Seconds of one layer by part, each pass on its own and nothing overlapped.

    shared: what the shared expert computes of the forward pass, where messages may hide it; as much
        again of the input's half of the backward.
    """

    forward: Parts
    input: Parts
    weight: Parts
    shared: float = 0.0


@dataclass(frozen=True)
class StageTimes:
    """Seconds of a stage on one micro-batch.

    Attributes:
        forward, input, weight: its passes run alone.
        hidden: what a forward and a whole backward of such a stage save by running side by side.
        parts: seconds by part of the three passes, run alone.
    """

    forward: float
    input: float
    weight: float
    hidden: float
    parts: Parts

    @property
    def total(self) -> float:
        return self.forward + self.input + self.weight


@lru_cache(maxsize=4096)
def layer_times(setting: Setting, cluster: Cluster, kind: Kind) -> LayerTimes:
    """Seconds of one layer of a kind."""
    layer = passes(setting, kind)
    shared = 0.0
    is_moe = kind == "moe" or (kind == "mtp" and setting.model.mtp_is_moe)
    if is_moe and setting.hides_shared_expert:
        shared = _parts(shared_expert(setting).forward, cluster).total()
    return LayerTimes(
        _parts(layer.forward, cluster),
        _parts(layer.input, cluster),
        _parts(layer.weight, cluster),
        shared,
    )


@lru_cache(maxsize=4096)
def stage_times(setting: Setting, cluster: Cluster, stage: Stage) -> StageTimes:
    """Seconds of a stage; messages that nothing hides are in its passes."""
    forward, input, weight = Parts(), Parts(), Parts()
    hidden_shared = [0.0, 0.0]
    for kind, number in stage.kinds.items():
        layer = layer_times(setting, cluster, kind)
        for total, part in ((forward, layer.forward), (input, layer.input), (weight, layer.weight)):
            for name, value in part.items():
                total[name] += number * value
        # The messages of a layer that its shared expert hides, in either direction.
        for half, times in enumerate((layer.forward, layer.input)):
            exchanged = sum(times[part] for part in DISPATCH)
            hidden_shared[half] += number * min(layer.shared, exchanged)
    parts = forward + input + weight
    alone = parts.total() - sum(hidden_shared)
    return StageTimes(
        forward=forward.total() - hidden_shared[0],
        input=input.total() - hidden_shared[1],
        weight=weight.total(),
        hidden=max(0.0, alone - _paired(parts, cluster)),
        parts=parts,
    )


def stage_costs(
    setting: Setting, cluster: Cluster, stages: Sequence[Stage], *, copies: int = 1
) -> StageCosts:
    """The stages of a model as the costs of a schedule, in seconds.

    Args:
        setting: how it is divided.
        cluster: where.
        stages: along the model.
        copies: 2 for a schedule that runs a second copy of the model (DualPipe).
    """
    times = [stage_times(setting, cluster, stage) for stage in stages]
    # Memory is the planner's own matter: here a stage holds its layers.
    layers = [float(stage.layers) for stage in stages]
    size = setting.tokens_split * setting.model.hidden_size * setting.width
    link: LinkName = "nvlink" if setting.processes <= cluster.nvlink_domain else "network"
    return StageCosts(
        forward=tuple(_positive(time.forward) for time in times),
        input=tuple(_positive(time.input) for time in times),
        weight=tuple(time.weight for time in times),
        # A pair takes no less than the longer of its halves.
        hidden=tuple(min(time.hidden, time.forward, time.input + time.weight) for time in times),
        activation=tuple(layers),
        latency=getattr(cluster, link).latency_us * 1e-6,
        occupancy=transfer(size, cluster, link, count=0),
    ).repeated(copies)


def _positive(time: float) -> float:
    """A stage without layers still hands its message on."""
    return max(time, 1e-9)


def _parts(operations: Iterable[Operation], cluster: Cluster) -> Parts:
    found: Parts = Counter()
    for operation in operations:
        found[operation.part] += seconds(operation, cluster)
    return found


def _paired(parts: Parts, cluster: Cluster) -> float:
    """Time of a forward and a backward side by side: one computes while the other communicates.

    Those of a GPU's multiprocessors that move tokens are missing to products and attention; kernels
    that only move bytes have enough of the others to fill the memory's bandwidth.
    """
    exchanged = sum(parts[part] for part in DISPATCH)
    all_of_them = cluster.multiprocessors
    left = 1.0
    if cluster.host == "gpu":
        left = max(1, all_of_them - _COMMUNICATION_MULTIPROCESSORS) / all_of_them
    products = parts["gemm"] + parts["attention"]
    computed = parts.total() - exchanged - products + products / left
    if not exchanged:
        return parts.total()
    return max(computed, exchanged) + _NOT_OVERLAPPED * min(computed, exchanged)
