"""`dsv3 rehearse`: what a cluster would say of a recipe in its first minutes, without one."""

from typing import Annotated

import typer

from dsv3_plugin.cli.options import Cluster, Html, Imbalance, Json, Overrides, Recipe
from dsv3_plugin.errors import UserError


def rehearse(
    recipe: Recipe,
    overrides: Overrides = None,
    ranks: Annotated[
        str | None,
        typer.Option(
            metavar="all|R,R,…",
            help="Ranks to rehearse: one at every place of the pipeline, or these; by default at "
            "its first, a middle and its last place.",
        ),
    ] = None,
    configuration: Annotated[
        bool, typer.Option("--configuration", help="Check the configuration alone (seconds).")
    ] = False,
    cluster: Cluster = None,
    imbalance: Imbalance = None,
    html: Html = None,
    json: Json = False,
) -> None:
    """Rehearse a run: its configuration, its ranks and a step of each, without its GPUs.

    Each rehearsed rank has the load of the busiest. Exit code 1 where it would not run.
    """
    from dsv3_plugin.cli.plan_cases import Asked, Conditions
    from dsv3_plugin.cli.plan_output import refuse_no_page
    from dsv3_plugin.cli.progress import children_done
    from dsv3_plugin.launch.needs import missing_texts
    from dsv3_plugin.recipe.load import load_recipe
    from dsv3_plugin.rehearsal.cases import chosen_ranks, company_for
    from dsv3_plugin.rehearsal.children import devices
    from dsv3_plugin.rehearsal.rehearsal import Wanted
    from dsv3_plugin.rehearsal.rehearsal import rehearse as rehearsed
    from dsv3_plugin.rehearsal.te.installed import how_to_get_it, te_python

    of_ranks = {"--ranks": ranks, "--imbalance": imbalance}
    if configuration and (stray := [name for name, said in of_ranks.items() if said is not None]):
        raise UserError(f"--configuration rehearses no rank: leave out {' and '.join(stray)}")
    if html is not None:
        refuse_no_page(html)
    conditions = Conditions(cluster, imbalance, None, None, drawn=False)
    conditions.check()
    words = tuple(overrides or ())
    run = conditions.run(Asked(recipe, words), load_recipe(recipe, words))
    wanted = Wanted(
        name=recipe,
        overrides=words,
        cluster_name=cluster or run.recipe.cluster_on(run.machine),
        cluster=run.cluster,
        machine=run.machine,
        recipe=run.closed(),
        ranks=() if configuration else tuple(chosen_ranks(run.recipe, ranks)),
        company=() if configuration else tuple(company_for(run.recipe, ranks)),
        imbalance=run.imbalance,
        missing=tuple(missing_texts(run.recipe)),
    )
    if wanted.ranks and wanted.needs_te_python and te_python() is None:
        raise UserError(
            how_to_get_it().removesuffix(".") + "; --configuration rehearses without it."
        )
    on_devices = devices(run.cluster, run.recipe.on_gpu(run.machine))
    with children_done(wanted.children) as done:
        found = rehearsed(wanted, on_devices, done)
    if html is not None:
        from dsv3_plugin.report.rehearsal.page import write_page

        write_page(found, html)
    if json:
        from dsv3_plugin.report.rehearsal.mapping import mapping
        from dsv3_plugin.terminal.lines import say_json

        say_json(mapping(found))
    else:
        from dsv3_plugin.report.rehearsal.verdict import verdict
        from dsv3_plugin.terminal.console import Console

        Console().print(verdict(found))
    if not found.would_run:
        raise typer.Exit(1)
