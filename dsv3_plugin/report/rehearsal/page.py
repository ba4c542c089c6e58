"""A rehearsal as one page of HTML."""

from pathlib import Path

from dsv3_plugin.rehearsal.rehearsal import Rehearsal
from dsv3_plugin.report.html.page import begin, rendered, write
from dsv3_plugin.report.plan.bars import bars_of_memory
from dsv3_plugin.report.rehearsal import grids, sentences

_TEMPLATE = Path(__file__).with_name("page.html.jinja")


def page(rehearsal: Rehearsal) -> str:
    """The page of a rehearsal."""
    stepped = rehearsal.stepped
    several = len({rank.case.schedule for rank in stepped}) > 1
    rows = [(grids.name(rank, several).replace("\n", ", "), rank.memory) for rank in stepped]
    return rendered(
        _TEMPLATE,
        rehearsal=rehearsal,
        where=sentences.where(rehearsal),
        in_the_end=sentences.in_the_end(rehearsal),
        findings=rehearsal.findings,
        lines=sentences.of_all(rehearsal),
        bars=bars_of_memory(rows, rehearsal.cluster) if rows else None,
        grids=grids,
        begin=begin,
    )


def write_page(rehearsal: Rehearsal, path: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    write(page(rehearsal), path)
