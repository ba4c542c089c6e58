"""A plan for people, on a terminal."""

from rich.console import Group
from rich.text import Text

from dsv3_plugin.errors import printable
from dsv3_plugin.planner.plan import Plan
from dsv3_plugin.report.plan import grids, sentences
from dsv3_plugin.terminal.console import styled


def plan_tables(plan: Plan, balanced: Plan | None = None, *, every_rank: bool = False) -> Group:
    """All of a plan, within 80 columns.

    Args:
        plan: what is shown.
        balanced: the same where every rank's experts are as busy, if `plan` has them otherwise.
        every_rank: a row for every pipeline rank, not for the telling ones.
    """
    longest = plan.longest
    return Group(
        *(Text(printable(sentences.where(plan))), grids.phases(plan).table(), Text()),
        *(styled(sentences.memory(plan)), grids.memory(plan, balanced).table(), Text()),
        *(
            styled(sentences.pipeline(plan.fullest)),
            grids.ranks(plan, plan.fullest, every_rank).table(),
            Text(),
        ),
        *(styled(sentences.step(longest)), grids.time(longest).table(), Text()),
        *(Text(printable(line)) for line in sentences.answering(plan)),
        Text(printable(sentences.checkpoints(plan))),
        *(Text(printable(line)) for line in sentences.in_the_end(plan)),
    )
