"""Losses of runs, drawn with the dots of Braille for a terminal."""

import math
from collections.abc import Sequence

from rich.text import Text

from dsv3_plugin.numbers import tokens_text
from dsv3_plugin.report.losses import RunLosses, means
from dsv3_plugin.terminal.console import styled

_COLOURS = ("blue", "green", "red", "magenta", "yellow", "cyan")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_ROWS = 16
_BESIDE = 25
"""Columns of the axes and their names."""
_NARROWEST = 20
_MARKS = 8
"""Letters along a line, where there are no colours."""


def drawn(runs: Sequence[RunLosses], width: int, *, colours: bool) -> list[str]:
    """The losses of runs over their tokens.

    Args:
        runs: at least one.
        width: columns of all.
        colours: whether runs are told apart by them, by letters otherwise.

    Returns:
        Lines, with a terminal's codes for colours.
    """
    import plotille

    lines = [_finite(run) for run in runs]
    losses = [loss for line in lines for _, loss in line] or [0.0]
    room = (max(losses) - min(losses)) * 0.05 or 0.5
    figure = plotille.Figure()
    figure.width, figure.height = max(_NARROWEST, width - _BESIDE), _ROWS
    figure.with_colors, figure.color_mode = colours, "names"
    figure.x_label, figure.y_label = "tokens", "loss"
    figure.set_x_limits(0, max(run.tokens[-1] for run in runs) or 1)
    figure.set_y_limits(min(losses) - room, max(losses) + room)
    figure.x_ticks_fkt = lambda value, _: tokens_text(value)
    figure.y_ticks_fkt = lambda value, _: f"{value:.3f}"
    for number, line in enumerate(lines):
        if not line:
            continue
        figure.plot(*zip(*line, strict=True), lc=_COLOURS[number % len(_COLOURS)])
        if len(runs) > 1 and not colours:
            some = line[:: math.ceil(len(line) / _MARKS)]
            figure.scatter(*zip(*some, strict=True), marker=_LETTERS[number % len(_LETTERS)])
    return figure.show().splitlines()


def key_line(run: RunLosses, number: int, *, several: bool, colours: bool) -> Text:
    """What a line stands for: the run, and where it is."""
    held_out = f", held out {run.held_out[-1][1]:.4f}" if run.held_out else ""
    mark = f"{_LETTERS[number % len(_LETTERS)]}  " if several and not colours else ""
    text = (
        f"{mark}{run.name}: step {run.steps[-1]:,}, {tokens_text(run.tokens[-1])} tokens, "
        f"loss {run.loss[-1]:.4f}{held_out}"
    )
    return styled(text, _COLOURS[number % len(_COLOURS)] if several and colours else "")


def _finite(run: RunLosses) -> list[tuple[float, float]]:
    points = zip(run.tokens, means(run.loss), strict=True)
    return [(tokens, loss) for tokens, loss in points if math.isfinite(loss)]
