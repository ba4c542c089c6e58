"""How evenly a run uses its experts, ranks and nodes, read back from its metrics. No torch here.

Every step records the load of ranks and nodes, and MaxVio over experts; the load of each expert,
which is most of the bytes, is recorded every so many steps. Records are read one by one and a few
numbers per layer are kept of each, so the metrics of a long run need little memory.
"""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import pydantic
from pydantic import Field

from dsv3_plugin.dispatch.balance import max_violation
from dsv3_plugin.errors import UserError, printable
from dsv3_plugin.files.atomic import whole_file
from dsv3_plugin.files.full_disk import write_errors_as
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.recipe import yaml_text
from dsv3_plugin.recipe.validation import validate
from dsv3_plugin.report.balance_verdict import EXPLAINED, Word, verdict

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

Record = Mapping[str, Any]
PARTS = ("expert_load", "rank_load", "node_load")

_COLUMNS = 1000
"""Most columns of a picture; with more steps, a column shows the largest of several."""
_LABELS = 20
"""Most layers with a number beside them."""
_FLOOR = 0.01
"""MaxVio below this counts as balance; the colours end here."""


_Layer = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Tokens = Annotated[_Number, Field(ge=0)]


class _Loads(pydantic.BaseModel):
    """What a record has to have if it has loads (see `dispatch.step_metrics`)."""

    model_config = pydantic.ConfigDict(strict=True)

    iteration: Annotated[int, Field(ge=0, lt=2**63)]
    max_vio: Annotated[dict[_Layer, _Number], Field(min_length=1)]
    rank_load: dict[_Layer, list[_Tokens]]
    node_load: dict[_Layer, list[_Tokens]]
    expert_load: dict[_Layer, list[_Tokens]] = {}

    @pydantic.model_validator(mode="after")
    def _fit_each_other(self) -> Self:
        if not self.max_vio.keys() <= self.node_load.keys():
            raise ValueError("node_load lacks a layer that max_vio has")
        for part in PARTS:
            loads = getattr(self, part)
            if not self.expert_load.keys() <= loads.keys():
                raise ValueError(f"{part} lacks a layer that expert_load has")
            if not all(map(sum, loads.values())) or len(set(map(len, loads.values()))) > 1:
                raise ValueError(f"{part} has a layer without tokens, or of another length")
        return self


class LoadHistory:
    """What is kept of a run's records.

    Attributes:
        steps: those with a load.
        experts: {layer: MaxVio over experts, by step}; NaN where the layer had no token.
        nodes: likewise over nodes.
        last: the last record with the load of each expert.
    """

    def __init__(
        self, records: Iterable[Record], run: Path, main_layers: int | None = None
    ) -> None:
        """Read records once, in order.

        Args:
            records: of metrics.jsonl.
            run: their folder, for the error.
            main_layers: of the model, without multi-token prediction; None: nobody knows.

        Raises:
            UserError: none has the load of each expert, or one is not as a run writes them.
        """
        self._main_layers = main_layers
        self.steps = array("q")
        self.experts: dict[str, array[float]] = {}
        self.nodes: dict[str, array[float]] = {}
        self.last: Record = {}
        for record in records:
            if record.get("max_vio") or record.get("expert_load"):
                validate(_Loads, record, f"{run}: a record in metrics.jsonl")
                nodes = {layer: max_violation(row) for layer, row in record["node_load"].items()}
                self._add(self.experts, record["max_vio"])
                self._add(self.nodes, nodes)
                self.steps.append(record["iteration"])
            if record.get("expert_load"):
                self.last = record
        if not self.last:
            raise UserError(
                f"{run} has no expert load in a metrics.jsonl: name the folder of a run that has "
                "trained a step of a model with experts."
            )

    def _add(self, columns: dict[str, "array[float]"], values: Mapping[str, float]) -> None:
        for layer in values.keys() - columns.keys():
            columns[layer] = array("f", [float("nan")] * len(self.steps))
        for layer, column in columns.items():
            column.append(values.get(layer, float("nan")))

    @property
    def layers(self) -> list[str]:
        return sorted(self.experts, key=int)

    def label(self, layer: str) -> str:
        """`3`, or `61 (MTP 1)`: in the records the MTP layers are numbered after the main ones."""
        beyond = -1 if self._main_layers is None else int(layer) - self._main_layers
        return layer if beyond < 0 else f"{layer} (MTP {beyond + 1})"


def main_layers(run: RunFolder) -> int | None:
    """Layers of a run's model without multi-token prediction; None where the run does not say."""
    if not run.recipe.exists():
        return None
    model = yaml_text.read_mapping(run.recipe).get("model")
    layers = model.get("num_layers") if isinstance(model, dict) else None
    return layers if isinstance(layers, int) else None


@dataclass(frozen=True)
class LayerBalance:
    """A layer in the last step that has the load of each expert.

    Attributes:
        layer: its number, multi-token prediction named.
        experts, ranks, nodes: MaxVio over them.
        idle_experts: experts without a token.
        verdict: whether the load of experts is good.
    """

    layer: str
    experts: float
    ranks: float
    nodes: float
    idle_experts: int
    verdict: Word


def last_step(history: LoadHistory) -> list[LayerBalance]:
    """The layers in the last step with all loads."""
    last = history.last
    return [
        LayerBalance(
            history.label(layer),
            *(max_violation(last[part][layer]) for part in PARTS),
            idle_experts=sum(not tokens for tokens in load),
            verdict=verdict(load),
        )
        for layer, load in last["expert_load"].items()
    ]


def load_mapping(history: LoadHistory) -> dict[str, Any]:
    """What `dsv3 balance --json` prints."""
    layers = last_step(history)
    return {
        "step": history.last["iteration"],
        "layers": [asdict(layer) for layer in layers],
        "worst_layer": max(layers, key=lambda layer: layer.experts).layer,
        "imbalance": 1 + max(layer.ranks for layer in layers),
        "plan": _plan_with(history, layers),
    }


def _plan_with(history: LoadHistory, layers: Sequence[LayerBalance]) -> str | None:
    """The line that plans a step with the busiest rank's load; None where there is but one rank."""
    loads = next(iter(history.last["rank_load"].values()))
    busiest = 1 + max(layer.ranks for layer in layers)
    return f"dsv3 plan RECIPE --imbalance {busiest:.3g}" if len(loads) > 1 else None


def load_table(history: LoadHistory) -> list[str]:
    """The last step with all loads: MaxVio over experts, ranks, nodes by layer; idle experts.

    Then which layer is worst, what that means for time, and what the words stand for.
    """
    layers = last_step(history)
    width = max(6, *(len(layer.layer) for layer in layers))
    lines = [
        f"step {history.last['iteration']}: largest load over the mean, minus 1 (MaxVio)",
        f"{'layer':>{width}} {'experts':>8} {'ranks':>8} {'nodes':>8} {'idle experts':>13}  "
        "verdict",
    ]
    lines += [
        f"{layer.layer:>{width}} {layer.experts:8.3f} {layer.ranks:8.3f} {layer.nodes:8.3f} "
        f"{layer.idle_experts:13d}  {layer.verdict:<7}"
        for layer in layers
    ]
    worst = max(layers, key=lambda layer: layer.experts)
    lines += [
        "",
        f"Layer {worst.layer} is the least even, {worst.verdict}: its busiest expert has "
        f"{1 + worst.experts:.3g} times the mean.",
    ]
    busiest = max(layers, key=lambda layer: layer.ranks)
    if (plan := _plan_with(history, layers)) is not None:
        lines.append(
            f"The busiest rank has {1 + busiest.ranks:.3g} times the mean (layer {busiest.layer}), "
            f"and the others wait for it: {plan}"
        )
    return [*lines, EXPLAINED]


def draw_load(history: LoadHistory, png: Path, title: str) -> None:
    """Draw the balance of a run into a PNG.

    MaxVio of experts over layers and steps; where there are several nodes, MaxVio of nodes by step;
    the last known load of each expert.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    several_nodes = len(next(iter(history.last["node_load"].values()))) > 1
    height = max(2.6, min(1.6 + 0.28 * len(history.layers), 8.0))
    heights = [height, *([2.4] if several_nodes else []), height]
    figure, axes = plt.subplots(
        len(heights), 1, figsize=(11, sum(heights)), height_ratios=heights, layout="constrained"
    )
    figure.suptitle(printable(title), parse_math=False)
    _draw_steps(history, axes[0])
    if several_nodes:
        _draw_nodes(history, axes[1])
    _draw_experts(history, axes[-1])
    refused = write_errors_as(lambda reason: f"cannot write {png}: {reason}")
    try:
        with refused, whole_file(png) as beside:
            figure.savefig(beside, dpi=120)
    finally:
        plt.close(figure)


def _draw_steps(history: LoadHistory, axes: "Axes") -> None:
    import numpy as np
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import FuncFormatter, LogLocator

    firsts, violation = _binned(history, history.experts)
    # MaxVio falls by decades while balance is learnt: on a linear scale the first steps, or one
    # bad one, leave nothing to see of the rest.
    most = max(float(np.nanmax(violation)), 10 * _FLOOR)
    least = max(float(np.nanmin(violation)), _FLOOR)
    below = bool(np.nanmin(violation) < least)
    edges = [*firsts, history.steps[-1] + 1]
    image = axes.pcolormesh(
        np.array(edges) - 0.5,
        np.arange(len(violation) + 1) - 0.5,
        violation.clip(min=least),
        cmap="magma_r",
        norm=LogNorm(vmin=min(least, most / 2), vmax=most),
    )
    bar = axes.figure.colorbar(image, ax=axes, label="MaxVio", extend="min" if below else "neither")
    bar.locator = LogLocator(subs=(1, 2, 5))
    bar.formatter = FuncFormatter(lambda value, _: f"{value:g}")
    bar.minorticks_off()
    bar.update_ticks()
    axes.set_title("largest expert load over the mean, minus 1, by step" + _per_column(history))
    _steps_below(axes)
    _layers_beside(axes, [history.label(layer) for layer in history.layers])
    axes.invert_yaxis()  # as in the other picture, the first layer is on top


def _draw_nodes(history: LoadHistory, axes: "Axes") -> None:
    import numpy as np

    firsts, violation = _binned(history, history.nodes)
    violation = violation.clip(min=_FLOOR / 10)  # 0 has no place on a logarithmic axis
    axes.plot(firsts, np.nanmax(violation, axis=0), label="worst layer")
    axes.plot(firsts, np.nanmean(violation, axis=0), label="mean of layers")
    axes.set_xlim(history.steps[0] - 0.5, history.steps[-1] + 0.5)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(alpha=0.3)
    axes.legend()
    axes.set_ylabel("MaxVio")
    axes.set_title("largest node load over the mean, minus 1, by step" + _per_column(history))
    _steps_below(axes)


def _draw_experts(history: LoadHistory, axes: "Axes") -> None:
    import numpy as np
    from matplotlib.colors import TwoSlopeNorm

    last = history.last
    layers = list(last["expert_load"])
    load = np.array([last["expert_load"][layer] for layer in layers], dtype=float)
    relative = load / load.mean(1, keepdims=True)
    # The mean is white; below and above each have a scale of their own, to the largest there is.
    norm = TwoSlopeNorm(1.0, vmin=0.0, vmax=max(2.0, float(relative.max())))
    image = axes.imshow(relative, aspect="auto", cmap="RdBu_r", norm=norm, interpolation="nearest")
    axes.figure.colorbar(image, ax=axes, label="load / mean")
    axes.set_title(f"load of each expert over the mean, step {last['iteration']}")
    axes.set_xlabel("expert")
    for kind, width in (("rank_load", 0.5), ("node_load", 2.0)):
        parts = len(last[kind][layers[0]])
        for part in range(1, parts):
            boundary = part * load.shape[1] / parts - 0.5
            axes.axvline(boundary, color="black", linewidth=width)
    _layers_beside(axes, [history.label(layer) for layer in layers])


def _binned(
    history: LoadHistory, columns: Mapping[str, "array[float]"]
) -> tuple[list[int], "np.ndarray"]:
    """First step of each column of a picture, and the largest values there. `[layers, columns]`"""
    import numpy as np

    values = np.array([columns[layer] for layer in history.layers])
    starts = list(range(0, len(history.steps), _steps_per_column(history)))
    return [history.steps[start] for start in starts], np.fmax.reduceat(values, starts, axis=1)


def _steps_per_column(history: LoadHistory) -> int:
    return -(-len(history.steps) // _COLUMNS)


def _per_column(history: LoadHistory) -> str:
    number = _steps_per_column(history)
    return f" (worst of {number} steps)" if number > 1 else ""


def _steps_below(axes: "Axes") -> None:
    axes.set_xlabel("step")
    axes.xaxis.get_major_locator().set_params(integer=True)


def _layers_beside(axes: "Axes", layers: Sequence[str]) -> None:
    """Numbers of the layers, as many as can be read."""
    shown = range(0, len(layers), -(-len(layers) // _LABELS))
    axes.set_ylabel("layer")
    axes.set_yticks(shown, [layers[index] for index in shown])
