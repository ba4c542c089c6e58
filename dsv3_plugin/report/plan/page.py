"""A plan as one page of HTML: no script, nothing from a network, for light and dark screens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from dsv3_plugin.errors import printable
from dsv3_plugin.files.atomic import whole_file
from dsv3_plugin.files.full_disk import write_errors_as
from dsv3_plugin.report.plan import calibration, grids, sentences
from dsv3_plugin.report.plan.assumptions import assumptions
from dsv3_plugin.report.plan.bars import memory_bars, time_bars
from dsv3_plugin.report.plan.case import Case
from dsv3_plugin.report.plan.comparison import comparison
from dsv3_plugin.report.plan.lanes import NAMES, lanes

_TEMPLATE = "page.html.jinja"


def page(cases: Sequence[Case]) -> str:
    """The page of one recipe, or of several beside each other."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    return environment.get_template(_TEMPLATE).render(
        cases=cases,
        comparison=comparison(cases) if len(cases) > 1 else [],
        grids=grids,
        calibration=calibration,
        sentences=sentences,
        begin=_begin,
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
    text = page(cases)
    with write_errors_as(lambda reason: f"cannot write {path}: {reason}"), whole_file(path) as file:
        file.write_text(text, encoding="utf-8")


def _begin(sentence: str) -> str:
    """A sentence with a capital."""
    return sentence[:1].upper() + sentence[1:]


def _shown(value: Any) -> Any:
    """What stands in an expression of the template: text as people may see it, markup as it is."""
    is_text = isinstance(value, str) and not hasattr(value, "__html__")
    return printable(value) if is_text else value
