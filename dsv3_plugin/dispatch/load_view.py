"""Pictures and tables of expert load, from a run's metrics. No torch here."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe.whole_file import whole_file

Record = Mapping[str, Any]


def max_violation(load: Sequence[int]) -> float:
    """MaxVio = max load / mean load − 1 (arXiv 2408.15664, eq. 4): 0 is perfect balance."""
    return max(load) * len(load) / sum(load) - 1


def records_with_load(records: Sequence[Record], run: Path) -> list[Record]:
    """The records that tell the load of the experts.

    Raises:
        UserError: there are none.
    """
    found = [record for record in records if record.get("expert_load")]
    if not found:
        raise UserError(f"{run} has no expert load in its metrics: has it trained a step with MoE?")
    return found


def load_table(records: Sequence[Record]) -> str:
    """The last step, a line per layer: MaxVio over experts, ranks and nodes, and idle experts."""
    last = records[-1]
    lines = [
        f"step {last['iteration']}: largest load over the mean, minus 1 (MaxVio)",
        f"{'layer':>6} {'experts':>8} {'ranks':>8} {'nodes':>8} {'idle experts':>13}",
    ]
    for layer, load in last["expert_load"].items():
        violations = [
            max_violation(last[kind][layer]) for kind in ("expert_load", "rank_load", "node_load")
        ]
        columns = " ".join(f"{violation:8.3f}" for violation in violations)
        lines.append(f"{layer:>6} {columns} {sum(not tokens for tokens in load):13d}")
    return "\n".join(lines)


def draw_load(records: Sequence[Record], png: Path, title: str) -> None:
    """Two heat maps: MaxVio over layers and steps; load over the mean per expert, last step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    last = records[-1]
    layers = list(last["expert_load"])
    violation = np.array(
        [[record["max_vio"].get(layer, np.nan) for record in records] for layer in layers]
    )
    load = np.array([last["expert_load"][layer] for layer in layers], dtype=float)
    relative = load / load.mean(1, keepdims=True)

    height = max(2.6, min(1.6 + 0.28 * len(layers), 8.0))
    figure, (over_steps, over_experts) = plt.subplots(
        2, 1, figsize=(11, 2 * height), layout="constrained"
    )
    figure.suptitle(title)
    steps = [record["iteration"] for record in records]
    edges = [steps[0] - 0.5, *((a + b) / 2 for a, b in itertools.pairwise(steps))]
    edges.append(steps[-1] + 0.5)
    rows = np.arange(len(layers) + 1) - 0.5
    image = over_steps.pcolormesh(edges, rows, violation, cmap="magma_r", vmin=0)
    figure.colorbar(image, ax=over_steps, label="MaxVio")
    over_steps.set_title("largest expert load over the mean, minus 1, by step")
    over_steps.set_xlabel("step")
    over_steps.xaxis.get_major_locator().set_params(integer=True)

    image = over_experts.imshow(
        relative, aspect="auto", cmap="RdBu_r", vmin=0, vmax=2, interpolation="nearest"
    )
    figure.colorbar(image, ax=over_experts, label="load / mean", extend="max")
    over_experts.set_title(f"load of each expert over the mean, step {steps[-1]}")
    over_experts.set_xlabel("expert")
    for kind, width in (("rank_load", 0.5), ("node_load", 2.0)):
        parts = len(last[kind][layers[0]])
        for part in range(1, parts):
            boundary = part * load.shape[1] / parts - 0.5
            over_experts.axvline(boundary, color="black", linewidth=width)
    for axes in (over_steps, over_experts):
        axes.set_ylabel("layer")
        axes.set_yticks(range(len(layers)), layers)
    over_steps.invert_yaxis()  # as in the other picture, the first layer is on top
    try:
        with whole_file(png) as beside:
            figure.savefig(beside, dpi=120)
    except OSError as error:
        raise UserError(f"cannot write {png}: {error.strerror}") from error
    finally:
        plt.close(figure)
