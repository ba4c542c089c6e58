"""The curves of a recipe as a picture."""

from pathlib import Path

from dsv3_plugin.errors import printable
from dsv3_plugin.files.atomic import whole_file
from dsv3_plugin.numbers import tokens_text
from dsv3_plugin.recipe.curve import Curve
from dsv3_plugin.recipe.schema import Recipe

_TITLES = {
    "learning_rate": "learning rate",
    "batch_size": "batch size (sequences)",
    "router_bias_speed": "router-bias speed γ",
    "mtp_weight": "MTP weight λ",
}
_POINTS = 200


def plot_curves(recipe: Recipe, path: str | Path) -> None:
    """Draw all curves of a recipe over consumed tokens, one panel each.

    Args:
        recipe: the run.
        path: the picture to write; its suffix (.png, .svg, .pdf) says the format.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True).flat
    for axis, (name, title) in zip(axes, _TITLES.items(), strict=True):
        if name == "batch_size":
            tokens, values = _batch_steps(recipe)
            axis.step(tokens, values, where="post")
        else:
            tokens, values = sample(getattr(recipe.curves, name), recipe.total_tokens)
            axis.plot(tokens, values)
        axis.set_title(title, loc="left")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: tokens_text(x)))
    title = f"{printable(recipe.name)}: curves over consumed tokens"
    figure.suptitle(title, parse_math=False)
    with whole_file(path) as beside:
        figure.savefig(beside, dpi=150)


def sample(curve: Curve, until: int) -> tuple[list[int], list[float]]:
    """Positions and values that draw a curve up to `until` tokens, corners and jumps kept."""
    tokens: list[int] = []
    values: list[float] = []
    for segment in curve.segments:
        end = until if segment.end is None else min(segment.end, until)
        if segment.start > end:
            break
        points = 1 if segment.shape == "constant" else _POINTS
        for point in range(points + 1):
            at = segment.start + (end - segment.start) * point // points
            tokens.append(at)
            values.append(segment(at))
    if curve.segments[-1].end is not None and tokens[-1] < until:
        tokens.append(until)
        values.append(curve(until))
    return tokens, values


def _batch_steps(recipe: Recipe) -> tuple[list[int], list[int]]:
    """The batch size as it runs, in whole multiples."""
    entries = [entry for entry in recipe.batch_schedule.entries if entry[0] <= recipe.total_tokens]
    starts, sizes = [start for start, _ in entries], [size for _, size in entries]
    return [*starts, recipe.total_tokens], [*sizes, sizes[-1]]
