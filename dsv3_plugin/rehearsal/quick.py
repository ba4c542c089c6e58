"""The quick half of a rehearsal, before many ranks start: seconds against an hour of theirs."""

from collections.abc import Callable, Sequence

from dsv3_plugin.errors import UserError
from dsv3_plugin.machine import Machine
from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.rehearsal.cases import step_cases
from dsv3_plugin.rehearsal.children import devices, rehearsed
from dsv3_plugin.rehearsal.report import RankReport, Request


def refuse_what_upstream_would(
    name: str,
    overrides: Sequence[str],
    recipe: Recipe,
    machine: Machine,
    tell: Callable[[str], object],
) -> None:
    """Have upstream look at the finished configuration of a run, in a process of its own.

    Only what it has against the run refuses that. Where the rehearsal itself comes to nothing, that
    is told, and the run goes on without.

    Args:
        name, overrides: what the run was started with.
        recipe: of them.
        machine: where it runs.
        tell: given a sentence for the person.

    Raises:
        UserError: with what upstream has against it.
    """
    try:
        report = _configured(name, overrides, recipe, machine)
    except (OSError, UserError) as error:  # no process, no folder, or a device of another maker
        tell(_goes_on_without(str(error).removesuffix(".")))
        return
    stopping = [finding for finding in report.findings if finding.stops]
    if report.broke_off:
        tell(_goes_on_without("; ".join(finding.text for finding in stopping)))
    elif stopping:
        raise UserError(f"{stopping[0].text}.")


def _configured(
    name: str, overrides: Sequence[str], recipe: Recipe, machine: Machine
) -> RankReport:
    cluster = recipe.cluster_on(machine)
    case = step_cases(recipe)[-1]
    request = Request(name, tuple(overrides), cluster, 0, case.folded, "configuration")
    stand_ins = devices(load_cluster(cluster), recipe.on_gpu(machine))
    # The other ranks wait at the rendezvous meanwhile, and no longer than this.
    (report,) = rehearsed([request], stand_ins, within_s=60 * recipe.parallel.timeout_minutes / 2)
    return report


def _goes_on_without(why: str) -> str:
    return f"The rehearsal of the configuration failed, and the run goes on without it: {why}."
