"""A rehearsal for people, on a terminal."""

from rich.console import Group, RenderableType
from rich.text import Text

from dsv3_plugin.errors import printable
from dsv3_plugin.rehearsal.rehearsal import Rehearsal
from dsv3_plugin.report.rehearsal import grids, sentences


def verdict(rehearsal: Rehearsal) -> Group:
    """All of a rehearsal, within 80 columns."""
    shown: list[RenderableType] = [Text(printable(sentences.where(rehearsal))), Text()]
    if rehearsal.stepped:
        for grid in (grids.stages(rehearsal), grids.memory(rehearsal), grids.work(rehearsal)):
            shown += [grid.table(), Text()]
        if (answers := grids.answers(rehearsal)).rows:
            shown += [answers.table(), Text()]
    if lines := sentences.of_all(rehearsal):
        shown += [*map(Text, lines), Text()]
    shown += [Text(printable(sentences.sentence(finding))) for finding in rehearsal.findings]
    shown.append(Text(sentences.in_the_end(rehearsal), "bold"))
    return Group(*shown)
