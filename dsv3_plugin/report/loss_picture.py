"""Losses and curves of runs as a picture."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dsv3_plugin.errors import printable
from dsv3_plugin.files.atomic import whole_file
from dsv3_plugin.files.full_disk import write_errors_as
from dsv3_plugin.numbers import tokens_text
from dsv3_plugin.report.curves import sample
from dsv3_plugin.report.losses import CURVES, RunLosses, means

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = tuple(f"tab:{name}" for name in ("blue", "green", "red", "purple", "brown", "cyan"))


def draw_losses(runs: Sequence[RunLosses], path: Path) -> None:
    """Draw the losses of runs over their tokens, and below what changed during training.

    Of one run the loss of multi-token prediction is drawn too; of several each has its colour.
    Held-out losses are dots, and the curves of recipes are grey lines under what was computed with.

    Args:
        runs: at least one.
        path: the picture to write; its suffix (.png, .svg, .pdf) says the format.

    Raises:
        UserError: it cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    grid = figure.add_gridspec(2, 4, height_ratios=(2.3, 1))
    _losses(figure.add_subplot(grid[0, :]), runs)
    for column, name in enumerate(CURVES):
        _curve(figure.add_subplot(grid[1, column]), runs, name)
    with (
        write_errors_as(lambda reason: f"cannot write {path}: {reason}"),
        whole_file(path) as beside,
    ):
        figure.savefig(beside, dpi=120)


def _losses(axis: "Axes", runs: Sequence[RunLosses]) -> None:
    if len(runs) == 1:
        (run,) = runs
        _line(axis, run, run.mtp_loss, "two tokens ahead (MTP)", "tab:orange")
        _line(axis, run, run.loss, "next token", _COLOURS[0])
        _held_out(axis, run)
    else:
        for run, colour in zip(runs, itertools.cycle(_COLOURS), strict=False):
            _line(axis, run, run.loss, printable(run.name), colour)
            if run.held_out:
                axis.plot(*zip(*run.held_out, strict=True), "o", color=colour, markersize=5)
    axis.set_ylabel("loss (nats per token)")
    axis.set_xlabel("consumed tokens")
    axis.set_title(_title(runs), loc="left", parse_math=False)
    axis.margins(x=0.03, y=0.08)
    _over_tokens(axis)
    for text in axis.legend(frameon=False).get_texts():
        text.set_parse_math(False)


def _line(axis: "Axes", run: RunLosses, values: Sequence[float], label: str, colour: str) -> None:
    """A loss, pale, and what it is on average; nothing of a run that has none of the kind."""
    if all(map(math.isnan, values)):
        return
    axis.plot(run.tokens, values, color=colour, alpha=0.25, linewidth=0.8)
    (line,) = axis.plot(run.tokens, means(values), color=colour, linewidth=1.6)
    line.set_label(f" {label}" if label.startswith("_") else label)  # which would be left out


def _held_out(axis: "Axes", run: RunLosses) -> None:
    """The evaluations, with the first and the last loss written beside them."""
    if not run.held_out:
        return
    dots = zip(*run.held_out, strict=True)
    axis.plot(*dots, "ko-", linewidth=1.2, markersize=5, label="held out")
    for position, loss in {run.held_out[0], run.held_out[-1]}:
        offset = {"textcoords": "offset points", "xytext": (0, 9), "ha": "center"}
        axis.annotate(f"{loss:.2f}", (position, loss), **offset)


def _title(runs: Sequence[RunLosses]) -> str:
    if len(runs) > 1:
        return "losses of runs (dots: held out)"
    (run,) = runs
    what = "" if run.recipe is None else f"{run.recipe.model.name}, "
    return printable(f"{run.name}: {what}{tokens_text(run.tokens[-1])} tokens")


def _curve(axis: "Axes", runs: Sequence[RunLosses], name: str) -> None:
    for run, colour in zip(runs, itertools.cycle(_COLOURS), strict=False):
        curve = None if run.recipe is None else _curve_of(run, name)
        if curve is not None:
            axis.plot(*curve, color="0.7")
        # A step computes with what its curve says where it begins.
        begun = [0.0, *run.tokens[:-1]]
        axis.plot(begun, run.used[name], ".", color=colour, markersize=2.5)
    axis.set_title(CURVES[name], loc="left", fontsize=9)
    axis.set_ylim(bottom=0)
    axis.tick_params(labelsize=7)
    axis.locator_params(axis="x", nbins=4)
    _over_tokens(axis)


def _curve_of(run: RunLosses, name: str) -> tuple[list[int], list[float]] | None:
    """The curve of a recipe; None where how long it is is known when its data are counted."""
    try:
        return sample(getattr(run.recipe.curves, name), run.recipe.total_tokens)
    except ValueError:
        return None


def _over_tokens(axis: "Axes") -> None:
    from matplotlib.ticker import FuncFormatter

    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tokens_text(value)))
    axis.grid(alpha=0.25)
