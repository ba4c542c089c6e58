"""`dsv3 schedule RECIPE`: which options go with a recipe, and its answer."""

from typing import TYPE_CHECKING, Any

from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe import shipped
from dsv3_plugin.schedules.registry import SCHEDULES
from dsv3_plugin.schedules.simulate import Links

if TYPE_CHECKING:
    from dsv3_plugin.schedules.timeline import Timeline


def is_recipe(name: str | None) -> bool:
    """Whether what is asked for is a recipe, by name or path, and no schedule."""
    if name is None or name in SCHEDULES:
        return False
    known = shipped.existing(name, shipped.shipped_folder("recipes")) is not None
    return known or name.endswith((".yaml", ".yml"))


def refuse_besides(options: dict[str, Any]) -> None:
    """Raise UserError for an option that says what a recipe says itself."""
    for name, value in options.items():
        if value not in (None, False, ""):
            raise UserError(
                f"--{name.replace('_', '-')} goes with the name of a schedule; a recipe says it "
                "itself, and key=value behind it says it otherwise"
            )


def answer(
    name: str,
    overrides: list[str],
    cluster: str | None,
    micro_batches: int | None,
    links: Links,
) -> "tuple[Timeline, dict[str, Any], list[str]]":
    """A recipe's pipeline: its timeline in seconds, as a mapping, and in lines.

    Raises:
        UserError: it cannot be read, is a model's, or has no such schedule.
    """
    from dsv3_plugin.cli.plan_cases import Asked, Conditions
    from dsv3_plugin.planner.time.timelines import pipeline_step
    from dsv3_plugin.report.plan.pipeline import pipeline_lines, pipeline_mapping

    if micro_batches is not None and micro_batches < 1:
        raise UserError(f"--micro-batches must be at least 1, not {micro_batches}")
    conditions = Conditions(cluster, None, None, None, drawn=False)
    run = conditions.searched(Asked(name, tuple(overrides)))
    step = pipeline_step(*run.planned, micro_batches, links)
    lines = pipeline_lines(run.recipe.name, step)
    mapping = pipeline_mapping(run.recipe.name, step)
    if links != "ideal":
        mapping |= {"links": links}
    return step.timeline, mapping, lines
