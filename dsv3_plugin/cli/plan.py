"""`dsv3 plan`: what a recipe costs in memory, time and money, or what a model counts."""

from pathlib import Path
from typing import Annotated

import typer

from dsv3_plugin.cli import completion
from dsv3_plugin.cli.options import Cluster, Html, Imbalance, Json
from dsv3_plugin.errors import UserError


def plan(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE_OR_MODEL",
            help="Shipped name (pretrain/tiny, deepseek-v3) or path.",
            autocompletion=completion.recipes_and_models,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key.path=value, for a recipe; with --compare, more recipes."),
    ] = None,
    cluster: Cluster = None,
    imbalance: Imbalance = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Fit the cluster's efficiencies to measured steps (a run's metrics.jsonl, or a "
            "table of steps), and plan with those.",
        ),
    ] = None,
    search: Annotated[
        bool,
        typer.Option(
            "--search",
            help="Rank the ways of running it: division, schedule, layout, recomputation.",
        ),
    ] = False,
    write: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="search: write the best as a recipe (.yaml)."),
    ] = None,
    ranks: Annotated[
        bool, typer.Option("--ranks", help="A row for every pipeline rank, not the telling ones.")
    ] = False,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Recipes side by side, each with the overrides that stand behind it."
        ),
    ] = False,
    html: Html = None,
    json: Json = False,
    seq_length: Annotated[
        int | None,
        typer.Option(
            help="Counts alone, at so many tokens per sequence; a recipe knows its own, 4096 for "
            "a model.",
            min=1,
        ),
    ] = None,
) -> None:
    """Say what a run costs in memory, time and money, or count a model, without a GPU."""
    from dsv3_plugin.cli.plan_cases import Asked, Conditions, side_by_side
    from dsv3_plugin.cli.plan_output import Output

    output = Output(json, html, ranks)
    output.check()
    conditions = Conditions(cluster, imbalance, calibrate, seq_length, drawn=html is not None)
    conditions.check()
    words = overrides or []
    if search:
        from dsv3_plugin.cli.plan_search import Search

        refuse_beside_search(compare=compare, html=html, ranks=ranks, seq_length=seq_length)
        searching = Search(json, write)
        searching.check()
        searching.answer(Asked(what, tuple(words)), conditions)
    elif write is not None:
        raise UserError("--write writes what --search finds: add --search")
    elif compare:
        if ranks:
            raise UserError(
                "--ranks shows the ranks of one plan, and --compare several: leave one out"
            )
        asked = side_by_side([what, *words])
        output.write_comparison([conditions.case(one, alone=False) for one in asked])
    else:
        output.write(conditions.case(Asked(what, tuple(words)), alone=True))


def refuse_beside_search(**options: object) -> None:
    """Raise UserError for an option that shows a plan, where many are ranked."""
    for name, value in options.items():
        if value not in (None, False):
            raise UserError(
                f"--{name.replace('_', '-')} does not go with --search: write what it finds with "
                "--write, and ask that recipe"
            )
