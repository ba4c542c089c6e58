"""A schedule as a picture: one lane per rank, time to the right, work in colour, idle white.

Hue tells the computation, depth of the hue the stage: light for a rank's first stage, deep for its
last, which is the near and the far side of a V, DualPipe's two directions, or the chunks of an
interleaved pipeline. An overlapped pair is one framed box, its forward above, its backward below.
Numbers are micro-batches.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from dsv3_plugin.errors import UserError, printable
from dsv3_plugin.files.atomic import whole_file
from dsv3_plugin.files.full_disk import write_errors_as
from dsv3_plugin.numbers import number_of
from dsv3_plugin.schedules.actions import BACKWARD, FORWARD, INPUT, WEIGHT, Overlap, Schedule
from dsv3_plugin.schedules.timeline import Timeline

_PAIR = "pair"
# kind: (name, lightest, deepest)
_HUES = {
    FORWARD: ("forward", "#b9dcf7", "#3f86d0"),
    BACKWARD: ("backward", "#bfe6c6", "#3a9a63"),
    INPUT: ("input gradient", "#ffd9b0", "#ee8a35"),
    WEIGHT: ("weight gradient", "#f6ebae", "#d6b62c"),
    _PAIR: ("overlapped pair: forward above, backward below", "#dccff3", "#8460c2"),
}
_INK, _MUTED = "#1d2733", "#66717d"
_LANE, _GAP = 0.86, 0.14  # of the height of a rank
_LANE_INCHES = 0.42
_BOX_INCHES = (0.10, 0.045)  # width of the shortest box: at least, and more for every digit
_WIDTH_INCHES = (9.5, 40.0)
_MARGINS = (0.62, 0.15, 0.50, 0.76)  # left, right, top, bottom; inches
_DPI = 110
_POINTS_PER_INCH = 72.0


@dataclass(frozen=True)
class _Box:
    """A rectangle in (time, lanes), with the micro-batch it is about."""

    left: float
    width: float
    top: float
    height: float
    kind: str
    depth: float  # 0 lightest .. 1 deepest
    micro_batch: int


def draw(timeline: Timeline, path: Path) -> None:
    """Write the timeline as PNG or SVG, by the ending of `path`."""
    if path.suffix.lower() not in (".png", ".svg"):
        raise UserError(f"cannot draw to {path}: the name must end in .png or .svg")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import PatchCollection
    from matplotlib.figure import Figure
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.patches import Patch, Rectangle

    schedule, makespan = timeline.schedule, timeline.makespan
    boxes, frames = _boxes(timeline)
    shortest = min(box.width for box in boxes if box.width > 0)
    narrowest, widest = _WIDTH_INCHES
    digits = len(str(max(box.micro_batch for box in boxes)))
    box_inches = _BOX_INCHES[0] + _BOX_INCHES[1] * digits
    width = min(max(makespan / shortest * box_inches, narrowest), widest)
    lanes = schedule.pp * _LANE_INCHES
    left, right, top, bottom = _MARGINS
    across, down = width + left + right, lanes + top + bottom
    figure = Figure(figsize=(across, down), dpi=_DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((left / across, bottom / down, width / across, lanes / down))
    axes.set_xlim(0, makespan)
    axes.set_ylim(schedule.pp - _GAP / 2, -_GAP / 2)

    axes.add_collection(
        PatchCollection(
            [Rectangle((b.left, b.top), b.width, b.height) for b in boxes],
            facecolors=[_shade(b.kind, b.depth) for b in boxes],
            edgecolors="white",
            linewidths=0.6,
        )
    )
    axes.add_collection(
        PatchCollection(
            [Rectangle((b.left, b.top), b.width, b.height) for b in frames],
            facecolors="none",
            edgecolors=_INK,
            linewidths=0.8,
        )
    )
    _number(axes, boxes, width / makespan)
    for rank in range(schedule.pp):
        axes.axhline(rank + _LANE + _GAP / 2, color="#e6eaee", linewidth=0.6, zorder=0)

    axes.set_yticks([rank + _LANE / 2 for rank in range(schedule.pp)])
    axes.set_yticklabels([f"rank {rank}" for rank in range(schedule.pp)], fontsize=9)
    axes.tick_params(length=0, colors=_INK)
    axes.tick_params(axis="x", labelsize=8, pad=2)
    for side in axes.spines.values():
        side.set_visible(False)
    heading = {"x": left / across, "y": 1 - 0.14 / down, "ha": "left", "va": "top", "color": _INK}
    title = printable(schedule.name)
    name = figure.text(**heading, s=title, fontsize=13, fontweight="bold", parse_math=False)
    heading["x"] += (name.get_window_extent().width / _DPI + 0.18) / across
    figure.text(**heading, s=_facts(timeline), fontsize=13)
    # A swatch for every shade that is drawn, side by side: light to deep, as the line below tells.
    used = {(box.kind, box.depth) for box in boxes}
    handles, words = [], []
    for kind, (name_of_kind, _, _) in _HUES.items():
        depths = sorted(depth for shown, depth in used if shown == kind)
        if depths:
            handles.append(tuple(Patch(facecolor=_shade(kind, depth)) for depth in depths))
            words.append(name_of_kind)
    figure.legend(
        handles=handles,
        labels=words,
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0.0)},
        loc="lower left",
        bbox_to_anchor=(left / across, 0.30 / down),
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        handlelength=2.0,
        handleheight=1.1,
        labelcolor=_INK,
        borderaxespad=0.0,
        borderpad=0.0,
    )
    if len(set(_depths(schedule).values())) > 1:
        figure.text(left / across, 0.10 / down, _depth_in_words(schedule), fontsize=9, color=_MUTED)
    refused = write_errors_as(lambda reason: f"cannot draw to {path}: {reason}")
    with refused, whole_file(path) as beside:
        figure.savefig(beside, facecolor="white")


def _facts(timeline: Timeline) -> str:
    schedule = timeline.schedule
    return (
        f"{number_of(schedule.pp, 'rank')}, "
        f"{number_of(schedule.num_micro_batches, 'micro-batch', 'micro-batches')}   "
        f"makespan {timeline.makespan:g}   idle {100 * timeline.idle_fraction:.2f} %"
    )


def _depth_in_words(schedule: Schedule) -> str:
    if len(schedule.streams) > 1:
        return "light: the pipeline down the ranks; deep: the one up the ranks"
    chunks = max(Counter(schedule.stage_ranks.values()).values())
    if chunks == 2:
        return "light: first stage of a rank; deep: its second"
    between = ", ".join(str(chunk) for chunk in range(2, chunks))
    return f"from light to deep: stages 1 (first), {between} and {chunks} (last) of a rank"


def _boxes(timeline: Timeline) -> tuple[list[_Box], list[_Box]]:
    """What to fill, and what to frame (pairs)."""
    depth = _depths(timeline.schedule)
    boxes, frames = [], []
    for rank, row in enumerate(timeline.spans):
        for span in row:
            width = span.end - span.start
            if isinstance(span.action, Overlap):
                for i, part in enumerate(span.action.parts):
                    boxes.append(
                        _Box(
                            span.start,
                            width,
                            rank + i * _LANE / 2,
                            _LANE / 2,
                            _PAIR,
                            depth[part.stage],
                            part.micro_batch,
                        )
                    )
                frames.append(_Box(span.start, width, rank, _LANE, _PAIR, 0.0, 0))
            else:
                part = span.action
                boxes.append(
                    _Box(
                        span.start,
                        width,
                        rank,
                        _LANE,
                        part.kind,
                        depth[part.stage],
                        part.micro_batch,
                    )
                )
    return boxes, frames


def _depths(schedule: Schedule) -> dict[int, float]:
    """Depth of hue of every stage: its place among its rank's from 0 to 1, halfway if alone."""
    depths = {}
    for rank in range(schedule.pp):
        stages = [stage for stage, holder in schedule.stage_ranks.items() if holder == rank]
        for i, stage in enumerate(stages):
            depths[stage] = i / (len(stages) - 1) if len(stages) > 1 else 0.5
    return depths


def _shade(kind: str, depth: float) -> tuple[float, float, float]:
    """The colour of a kind at a depth, red, green and blue from 0 to 1."""
    _, light, deep = _HUES[kind]
    ends = [[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in (light, deep)]
    return tuple(a + (b - a) * depth for a, b in zip(*ends, strict=True))


def _number(axes, boxes: list[_Box], inches_per_time: float) -> None:
    """Micro-batch numbers, in every box that has room for one that can be read.

    All glyphs of a colour are one shape: thousands of text objects would take a minute to draw.
    """
    import numpy
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline
    from matplotlib.textpath import TextPath

    # Points to (time, lanes); lanes count downwards.
    scale = (1 / (inches_per_time * _POINTS_PER_INCH), -1 / (_LANE_INCHES * _POINTS_PER_INCH))
    glyphs: dict[int, tuple[Outline, numpy.ndarray]] = {}
    outlines: dict[str, list[Outline]] = {}
    for box in boxes:
        if box.micro_batch not in glyphs:
            outline = TextPath((0, 0), str(box.micro_batch), size=1)
            extent = outline.get_extents()
            middle = numpy.array([(extent.x0 + extent.x1) / 2, _DIGIT_HEIGHT / 2])
            glyphs[box.micro_batch] = outline, middle
        outline, middle = glyphs[box.micro_batch]
        high = box.height * _LANE_INCHES * _POINTS_PER_INCH
        wide = box.width * inches_per_time * _POINTS_PER_INCH
        size = min(9.0, 0.62 * high, (wide - 4) / (0.62 * len(str(box.micro_batch))))
        if size < 4.0:
            continue
        centre = (box.left + box.width / 2, box.top + box.height / 2)
        vertices = (outline.vertices - middle) * size * scale + centre
        colour = _INK if _luminance(_shade(box.kind, box.depth)) > 0.5 else "white"
        outlines.setdefault(colour, []).append(Outline(vertices, outline.codes))
    for colour, shapes in outlines.items():
        shape = Outline.make_compound_path(*shapes)
        axes.add_artist(PathPatch(shape, facecolor=colour, edgecolor="none", zorder=3))


_DIGIT_HEIGHT = 0.73  # of the font size


def _luminance(colour: tuple[float, float, float]) -> float:
    """How bright a colour looks, 0 to 1."""
    red, green, blue = colour
    return 0.299 * red + 0.587 * green + 0.114 * blue
