"""`dsv3 schedule`: show, time, prove, draw or search for a pipeline schedule."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsv3_plugin.cli import completion
from dsv3_plugin.cli.options import Cluster, refuse_other_ending
from dsv3_plugin.errors import UserError
from dsv3_plugin.numbers import number_of
from dsv3_plugin.schedules.registry import SCHEDULES
from dsv3_plugin.schedules.simulate import Links, simulate
from dsv3_plugin.terminal.lines import say_all

if TYPE_CHECKING:
    from dsv3_plugin.schedules.search.search import Found
    from dsv3_plugin.schedules.timeline import Timeline

_CHUNKED = " and ".join(kind.name for kind in SCHEDULES.values() if kind.stages_per_rank is None)
_OVERLAPPED = " and ".join(kind.name for kind in SCHEDULES.values() if kind.make_overlapped)


def schedule(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="SCHEDULE_OR_RECIPE",
            help=f"{', '.join(SCHEDULES)} (which looks for a better one), or a recipe, whose "
            "schedule is timed with its own stages on its cluster.",
            autocompletion=completion.schedules_and_recipes,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.path=value, for a recipe.")
    ] = None,
    pp: Annotated[int | None, typer.Option("--pp", help="Ranks (devices) of the pipeline.")] = None,
    micro_batches: Annotated[
        int | None,
        typer.Option(
            help="Micro-batches of a step; both directions of dualpipe. Of a recipe those of its "
            "last batch."
        ),
    ] = None,
    vp: Annotated[
        int | None,
        typer.Option("--vp", help=f"Chunks per rank, of {_CHUNKED}; 2 by default, a V in search."),
    ] = None,
    overlap: Annotated[
        bool,
        typer.Option("--overlap", help=f"{_OVERLAPPED}: Megatron's overlapped pairs."),
    ] = False,
    cost: Annotated[
        str,
        typer.Option(
            help="Times of one P-th of the model: F=1,I=1,W=1,FB=2.5 (FB an overlapped pair); "
            "comm=0 is the latency of a message, link=0 the time it occupies its link."
        ),
    ] = "",
    from_csv: Annotated[
        Path | None, typer.Option(help="Read, and prove, a schedule in torch's text form.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write it in torch's text form.")] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; idle_per_rank is time.")
    ] = False,
    png: Annotated[Path | None, typer.Option(help="Draw it.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Draw it.")] = None,
    draw: Annotated[
        bool, typer.Option("--draw", help="Draw it in the terminal, a line per rank.")
    ] = False,
    cluster: Cluster = None,
    stage_costs: Annotated[
        str | None, typer.Option(help="Relative work of the stages: 1,2*30,3.9")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Stages as large as this model's FLOPs (deepseek-v3).",
            autocompletion=completion.models,
        ),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Its decoder layers on each stage: 1,2*30,0")
    ] = None,
    seq_length: Annotated[
        int | None, typer.Option(help="Tokens per sequence, for --model; 4096 by default.", min=1)
    ] = None,
    links: Annotated[
        Links,
        typer.Option(
            help="How messages travel: ideal, each for itself; nccl, queued as NCCL does, on a "
            "communicator for every two ranks as the executor has it; nccl-one, on a single one."
        ),
    ] = "ideal",
    activations: Annotated[
        float | None,
        typer.Option(
            help="search: most micro-batches of a 1F1B stage that a rank holds; "
            "by default what dualpipe_v holds."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="search: seed; 0 by default.")] = None,
    effort: Annotated[
        float | None,
        typer.Option(help="search: 1, the default, is about half a minute of one core."),
    ] = None,
) -> None:
    """Show, time, prove, draw or search for a pipeline schedule."""
    from dsv3_plugin.cli import schedule_recipe
    from dsv3_plugin.cli.schedule_options import Choice, SearchOptions, StageOptions

    output = Output(json, csv, png, svg, draw)
    output.check()
    if from_csv is None and schedule_recipe.is_recipe(name):
        assert name is not None
        schedule_recipe.refuse_besides(
            {
                "pp": pp, "vp": vp, "overlap": overlap, "cost": cost, "stage_costs": stage_costs,
                "model": model, "layers": layers, "seq_length": seq_length,
                "activations": activations, "seed": seed, "effort": effort,
            }
        )  # fmt: skip
        output.write(*schedule_recipe.answer(name, overrides or [], cluster, micro_batches, links))
        return
    if overrides or cluster is not None:
        stray = overrides[0] if overrides else "--cluster"
        raise UserError(f"{stray} goes with a recipe, and {name or from_csv} is a schedule")
    choice = Choice(name, from_csv, pp, micro_batches, vp, overlap)
    stages = StageOptions(cost, stage_costs, model, layers, seq_length)
    options = SearchOptions(activations, seed, effort)
    if choice.searched:
        found = options.search(choice, stages)
        chosen, ideal = found.schedule, found.timeline
    else:
        options.refuse()
        found = None
        chosen = choice.schedule()
        ideal = simulate(chosen, stages.of_schedule(chosen))
    timeline = ideal
    if links != "ideal":
        timeline = simulate(chosen, stages.of_schedule(chosen), links)
    if found is None:
        summary, lines = timeline.summary(), lines_of(timeline)
    else:
        found = replace(found, timeline=timeline)
        summary, lines = found.summary(), found_lines(found)
    if links != "ideal":
        summary |= {"links": links, "ideal_makespan": ideal.makespan}
        lines += ["", links_line(links, timeline.makespan, ideal.makespan)]
    output.write(timeline, summary, lines)


@dataclass(frozen=True)
class Output:
    """Where the answer goes. Each field is the option of its name."""

    json: bool
    csv: Path | None
    png: Path | None
    svg: Path | None
    draw: bool

    def check(self) -> None:
        """Raise UserError for what does not go together, a picture and the end of its name too."""
        for option, ending, path in (("--png", ".png", self.png), ("--svg", ".svg", self.svg)):
            if path is not None:
                refuse_other_ending(option, path, ending)
        if self.draw and self.json:
            raise UserError("--draw draws in the terminal, and --json prints one object: name one")

    def write(self, timeline: "Timeline", summary: dict[str, Any], lines: list[str]) -> None:
        """Write the files that were asked for, then print the summary as JSON, or the lines."""
        if self.csv is not None:
            from dsv3_plugin.schedules.csv_file import write_csv

            write_csv(timeline.schedule, self.csv)
        for picture in (self.png, self.svg):
            if picture is not None:
                from dsv3_plugin.schedules.draw import draw

                draw(timeline, picture)
        if self.draw:
            from dsv3_plugin.schedules.text_picture import text_picture
            from dsv3_plugin.terminal.console import Console

            lines = [*lines, "", *text_picture(timeline, Console().width)]
        if self.json:
            from json import dumps

            lines = [dumps(summary)]
        say_all(lines)


def lines_of(timeline: "Timeline") -> list[str]:
    """A schedule in words and one line per rank."""
    schedule = timeline.schedule
    lines = [
        f"{schedule.name}: {number_of(schedule.pp, 'rank')}, "
        f"{number_of(schedule.num_micro_batches, 'micro-batch', 'micro-batches')}, "
        f"{number_of(schedule.num_stages, 'stage')}",
        f"makespan {timeline.makespan:g}, idle {100 * timeline.idle_fraction:.2f} %, "
        f"peak activations {max(timeline.peak_activations):g} (micro-batches of a 1F1B stage)",
        "",
        "rank       idle   peak  stages",
    ]
    for rank, (idle, peak) in enumerate(
        zip(timeline.idle_per_rank, timeline.peak_activations, strict=True)
    ):
        stages = ", ".join(str(s) for s, holder in schedule.stage_ranks.items() if holder == rank)
        lines.append(f"{rank:4} {idle:10.4g} {peak:6.4g}  {stages}")
    return [*lines, "", slowest_line(timeline)]


def slowest_line(timeline: "Timeline") -> str:
    """Which rank computes longest, and with which of its stages."""
    makespan, schedule = timeline.makespan, timeline.schedule
    busy = [makespan - idle for idle in timeline.idle_per_rank]
    longest, mean = max(busy), sum(busy) / len(busy)
    rank = busy.index(longest)
    if longest <= (1 + 1e-6) * mean:
        return f"all ranks compute as long: {longest:g} of {makespan:g}"
    held = [stage for stage, holder in schedule.stage_ranks.items() if holder == rank]
    times = dict.fromkeys(held, 0.0)
    for span in timeline.spans[rank]:
        for part in span.action.parts:
            times[part.stage] += (span.end - span.start) / len(span.action.parts)
    most = max(held, key=lambda stage: times[stage])
    return (
        f"rank {rank} is the slowest: it computes for {longest:g} of {makespan:g}, "
        f"{longest / mean:.3f} times the mean, {times[most]:g} of it for stage {most}"
    )


def links_line(links: Links, makespan: float, ideal: float) -> str:
    """What it costs that messages queue."""
    longer = 100 * (makespan / ideal - 1)
    return f"links {links}: {longer:.2f} % longer than the {ideal:g} of ideal links"


def found_lines(found: "Found") -> list[str]:
    """The same for a search, with what bounds it and what it is compared with."""
    lines = [
        *lines_of(found.timeline),
        "",
        f"no schedule can be shorter than {found.bound:g}: {100 * found.distance:.2f} % to go",
    ]
    for name, makespan in sorted(found.published.items(), key=lambda item: item[1]):
        gain = 1 - found.timeline.makespan / makespan
        lines.append(f"{name} takes {makespan:g}: {100 * gain:.2f} % saved")
    return lines
