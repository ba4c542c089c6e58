"""`dsv3 schedule`: show, time, prove, draw or search for a pipeline schedule."""

from pathlib import Path
from typing import Annotated

import typer

from dsv3_plugin.schedules.registry import SCHEDULES


def schedule(
    name: Annotated[
        str | None,
        typer.Argument(help=f"{', '.join(SCHEDULES)} (which looks for a better one)."),
    ] = None,
    pp: Annotated[int | None, typer.Option("--pp", help="Ranks (devices) of the pipeline.")] = None,
    micro_batches: Annotated[
        int | None, typer.Option(help="Micro-batches of a step; both directions of dualpipe.")
    ] = None,
    vp: Annotated[
        int | None,
        typer.Option(
            "--vp", help="Chunks per rank, of interleaved and search; 2 by default, a V in search."
        ),
    ] = None,
    overlap: Annotated[
        bool,
        typer.Option("--overlap", help="interleaved: Megatron's overlapped pairs."),
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
    stage_costs: Annotated[
        str | None, typer.Option(help="Relative work of the stages: 1,2*30,3.9")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Stages as large as this model's FLOPs (deepseek-v3).")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Its decoder layers on each stage: 1,2*30,0")
    ] = None,
    seq_length: Annotated[
        int | None, typer.Option(help="Tokens per sequence, for --model; 4096 by default.", min=1)
    ] = None,
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
    from json import dumps

    from dsv3_plugin.cli.schedule_options import (
        Stages,
        as_text,
        check_pictures,
        choose_schedule,
        found_as_text,
        parse_costs,
        parse_layers,
        parse_numbers,
        refuse_options_of_search,
        searched,
        stages_of,
    )
    from dsv3_plugin.schedules.csv_file import write_csv
    from dsv3_plugin.schedules.simulate import simulate

    check_pictures(png, svg)
    costs = parse_costs(cost)
    stages = Stages(
        sizes=parse_numbers("--stage-costs", stage_costs) if stage_costs is not None else None,
        model=model,
        layers=parse_layers(layers) if layers is not None else None,
        seq_length=seq_length,
    )
    if name in SCHEDULES and SCHEDULES[name].searched and from_csv is None:
        found = searched(
            pp,
            micro_batches,
            vp,
            stages,
            costs,
            overlap=overlap,
            activations=activations,
            seed=seed,
            effort=effort,
        )
        timeline, summary, text = found.timeline, found.summary(), found_as_text(found)
    else:
        refuse_options_of_search({"--activations": activations, "--seed": seed, "--effort": effort})
        chosen = choose_schedule(name, from_csv, pp, micro_batches, vp, overlap)
        timeline = simulate(chosen, stages_of(chosen, stages, costs))
        summary, text = timeline.summary(), as_text(timeline)
    print(dumps(summary) if json else text)
    if csv is not None:
        write_csv(timeline.schedule, csv)
    for picture in (png, svg):
        if picture is not None:
            from dsv3_plugin.schedules.draw import draw

            draw(timeline, picture)
