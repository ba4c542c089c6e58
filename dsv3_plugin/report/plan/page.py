"""A plan as one page of HTML."""

from collections.abc import Sequence
from pathlib import Path

from dsv3_plugin.report.html.page import begin, rendered, write
from dsv3_plugin.report.plan import calibration, grids, sentences
from dsv3_plugin.report.plan.assumptions import assumptions
from dsv3_plugin.report.plan.bars import memory_bars, time_bars
from dsv3_plugin.report.plan.case import Case
from dsv3_plugin.report.plan.comparison import comparison
from dsv3_plugin.report.plan.lanes import NAMES, lanes

_TEMPLATE = Path(__file__).with_name("page.html.jinja")


def page(cases: Sequence[Case]) -> str:
    """The page of one recipe, or of several beside each other."""
    return rendered(
        _TEMPLATE,
        cases=cases,
        comparison=comparison(cases) if len(cases) > 1 else [],
        grids=grids,
        calibration=calibration,
        sentences=sentences,
        begin=begin,
        memory_bars=memory_bars,
        time_bars=time_bars,
        lanes=lanes,
        lane_names=NAMES,
        assumptions=assumptions,
    )


def write_page(cases: Sequence[Case], path: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    write(page(cases), path)
