"""The quick half of a rehearsal, before ranks of several nodes start: seconds against an hour."""

from collections.abc import Sequence

from dsv3_plugin.errors import UserError
from dsv3_plugin.machine import Machine
from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.rehearsal.cases import step_cases
from dsv3_plugin.rehearsal.children import devices, rehearsed
from dsv3_plugin.rehearsal.report import Request


def refuse_what_upstream_would(
    name: str, overrides: Sequence[str], recipe: Recipe, machine: Machine
) -> None:
    """Have upstream look at the finished configuration of a run, in a process of its own.

    Args:
        name, overrides: what the run was started with.
        recipe: of them.
        machine: where it runs.

    Raises:
        UserError: with what it has against it.
    """
    cluster = recipe.cluster_on(machine)
    case = step_cases(recipe)[-1]
    request = Request(name, tuple(overrides), cluster, 0, case.folded, "configuration")
    on_gpu = recipe.on_gpu(machine)
    (report,) = rehearsed([request], devices(load_cluster(cluster), on_gpu))
    for finding in report.findings:
        if finding.stops:
            raise UserError(f"{finding.sentence}.")
