"""A step in closed form: what a search ranks thousands of ways by, before it weighs the best.

A rank's share of the model is taken to be the P-th of it that whole layers allow, and the bubble is
the published formula of the schedule (arXiv 2104.04473 for 1F1B and interleaving, 2401.10241 for
ZB1P, 2405.15362 for ZB-V, 2412.19437 for DualPipe; DualPipeV folds that).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil

from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.planner.memory.peak import Moment, RankOrder
from dsv3_plugin.planner.memory.ranks import rank_memory
from dsv3_plugin.planner.search.candidate import Choice
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.stages import Stage
from dsv3_plugin.planner.time.stage_times import StageTimes, stage_times


@dataclass(frozen=True)
class Share:
    """Seconds of a P-th of the model on one micro-batch, as `StageTimes`."""

    forward: float
    input: float
    weight: float
    hidden: float

    @property
    def total(self) -> float:
        return self.forward + self.input + self.weight

    @property
    def pair(self) -> float:
        """A forward and a backward side by side."""
        return self.total - self.hidden


Bubble = Callable[[int, int, Share], float]
"""Seconds of a step beyond the micro-batches of a rank; of ranks, stages per rank, and a share."""

_BUBBLES: dict[str, Bubble] = {
    "1f1b": lambda p, v, s: (p - 1) * s.total,
    "interleaved": lambda p, v, s: (p - 1) * s.total / v,
    "zb1p": lambda p, v, s: (p - 1) * max(0.0, s.total - 2 * s.weight),
    "zbv": lambda p, v, s: (p - 1) / 2 * max(0.0, s.total - 2 * s.weight),
    # The report's bubble, and the pairs that filling and draining cannot form.
    "dualpipe": lambda p, v, s: (
        (p / 2 - 1) * max(0.0, s.pair + s.input - 2 * s.weight) + (p + 1) * s.hidden
    ),
    "dualpipe_v": lambda p, v, s: (
        (p / 2 - 1) * max(0.0, s.pair + s.input - 2 * s.weight) + (p + 1) * s.hidden + s.forward / 2
    ),
}

_IN_FLIGHT: dict[str, Callable[[int, int], float]] = {
    "1f1b": lambda p, v: p,
    "interleaved": lambda p, v: (2 * (p - 1) + (v - 1) * p + 3) / v,
    "zb1p": lambda p, v: p,
    "zbv": lambda p, v: p,
    "dualpipe": lambda p, v: p + 1,
    "dualpipe_v": lambda p, v: p + 0.5,
}
"""Micro-batches that a rank keeps the activations of at once, all its stages together."""

PAIRED = ("dualpipe", "dualpipe_v")
"""Schedules whose forwards and backwards run in pairs."""


class Estimates:
    """Steps of a recipe's last batch, by choice.

    Attributes:
        given: the recipe's setting.
        cluster: where.
        batch: sequences of a step.
    """

    def __init__(self, given: Setting, cluster: Cluster, batch: int) -> None:
        self.given, self.cluster, self.batch = given, cluster, batch
        self._layers: dict[tuple[object, ...], _Layers] = {}

    def setting(self, choice: Choice) -> Setting:
        """The recipe's setting with another choice."""
        divided = choice.tensor * choice.pipeline * choice.context
        return replace(
            self.given,
            tensor=choice.tensor,
            pipeline=choice.pipeline,
            context=choice.context,
            expert=choice.expert,
            micro_batch=choice.micro_batch,
            data=self.given.processes // divided,
            recompute=frozenset(choice.recompute),
            dispatcher=choice.dispatcher,
            wire=choice.wire,
        )

    def seconds(self, choice: Choice) -> float:
        """About how long the pipeline takes for a step."""
        layers = self._layers_of(choice)
        p = choice.pipeline
        whole = layers.slowest(p) / layers.total("total")
        each = Share(
            *(whole * layers.total(name) for name in ("forward", "input", "weight", "hidden"))
        )
        data = self.given.processes // (choice.tensor * p * choice.context)
        micro_batches = self.batch // (choice.micro_batch * data)
        per_micro_batch = each.pair if choice.schedule in PAIRED else each.total
        bubble = _BUBBLES.get(choice.schedule, _BUBBLES["1f1b"])
        return micro_batches * per_micro_batch + bubble(p, choice.virtual_stages or 1, each)

    def bytes(self, choice: Choice) -> float:
        """About what a pipeline rank holds."""
        setting, model, p = self.setting(choice), self.given.model, choice.pipeline
        share = -(-model.num_layers // p)
        stage = Stage(moe=share) if model.moe_layers else Stage(dense=share)
        if p == 1:
            dense = model.moe_layer_freq.count(0)
            stage = Stage(True, dense, share - dense, model.mtp_num_layers or 0, head=True)
        held = (stage,) * (2 if choice.schedule == "dualpipe" else 1)
        at_once = _IN_FLIGHT.get(choice.schedule, _IN_FLIGHT["1f1b"])(p, choice.virtual_stages or 1)
        micro_batches = self.batch // (choice.micro_batch * setting.data)
        kept = ceil(min(at_once, micro_batches))
        # Either copy of the model keeps its part of them.
        each = [kept // len(held) + (index < kept % len(held)) for index in range(len(held))]
        nothing = (0,) * len(held)
        order = RankOrder(
            moments=(Moment(tuple(each), nothing, nothing, backward=0, whole=True),),
            micro_batches=(micro_batches // len(held),) * len(held),
            pairs=choice.schedule in PAIRED,
        )
        return rank_memory(setting, held, order, self.cluster.host == "gpu").total

    def _layers_of(self, choice: Choice) -> "_Layers":
        """What layers take; it does not matter how many ranks hold others, or other sequences."""
        key = (
            choice.tensor,
            choice.context,
            choice.expert,
            choice.micro_batch,
            choice.recompute,
            choice.dispatcher,
            choice.wire,
        )
        if key not in self._layers:
            self._layers[key] = _Layers.of(self.setting(choice), self.cluster)
        return self._layers[key]


@dataclass(frozen=True)
class _Layers:
    """Seconds of a model's parts on one micro-batch.

    Attributes:
        decoder: of a layer of each kind there is, and how many there are.
        last: of head and multi-token prediction.
    """

    decoder: tuple[tuple[StageTimes, int], ...]
    last: StageTimes

    @classmethod
    def of(cls, setting: Setting, cluster: Cluster) -> "_Layers":
        model = setting.model
        decoder = tuple(
            (stage_times(setting, cluster, one), model.moe_layer_freq.count(kind))
            for kind, one in enumerate((Stage(dense=1), Stage(moe=1)))
            if kind in model.moe_layer_freq
        )
        last = Stage(mtp=model.mtp_num_layers or 0, head=True)
        return cls(decoder, stage_times(setting, cluster, last))

    def total(self, name: str) -> float:
        """Of the whole model, an attribute of `StageTimes`."""
        layers = sum(getattr(times, name) * number for times, number in self.decoder)
        return layers + getattr(self.last, name)

    def slowest(self, p: int) -> float:
        """What the slowest of p ranks has at least, layers being whole and alike."""
        number = sum(number for _, number in self.decoder)
        mean = sum(times.total * number for times, number in self.decoder) / number
        floor = (mean * number + self.last.total) / p
        beside_the_head = [self.last.total + mean * n for n in range(number + 1)]
        elsewhere = [mean * n for n in range(1, number + 1)]
        for ceiling in sorted(beside_the_head + elsewhere):
            if ceiling < max(self.last.total, floor):
                continue
            room = (p - 1) * int(ceiling / mean + _EPSILON)
            if room + int((ceiling - self.last.total) / mean + _EPSILON) >= number:
                return ceiling
        return beside_the_head[-1]


_EPSILON = 1e-9
