"""Where the answer of `dsv3 plan` goes: tables, JSON, a page."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from dsv3_plugin.cli.options import refuse_other_ending
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.full_disk import write_errors_as
from dsv3_plugin.report.plan.case import Case
from dsv3_plugin.report.plan.comparison import comparison, remarks
from dsv3_plugin.report.plan.counts import counts_mapping, counts_summary, counts_table
from dsv3_plugin.report.plan.mapping import plan_mapping
from dsv3_plugin.report.plan.sentences import limit
from dsv3_plugin.report.plan.tables import plan_tables
from dsv3_plugin.terminal.console import Console
from dsv3_plugin.terminal.lines import say_json


@dataclass(frozen=True)
class Output:
    """Where the answer goes. Each field is the option of its name."""

    json: bool
    html: Path | None
    ranks: bool

    def check(self) -> None:
        """Raise UserError for what does not go together."""
        if self.html is not None:
            refuse_no_page(self.html)
        if self.json and self.ranks:
            raise UserError("--ranks is for the table; --json has every pipeline rank")

    def write(self, case: Case) -> None:
        """One recipe or model.

        Raises:
            UserError: its plan does not fit, which is said once all of it is shown.
        """
        self._write_page([case])
        if self.json:
            self._dump(_mapping(case))
        else:
            Console().print(*self._shown(case), sep="\n")
        if case.plan is not None and not case.plan.limit.fits:
            raise UserError(f"{case.name}: {limit(case.plan.limit)}.")

    def _shown(self, case: Case) -> list[RenderableType]:
        counts = counts_mapping(case.model, case.seq_length)
        if case.plan is None:
            if self.ranks:
                raise UserError(f"--ranks is of a plan, and {case.name} is only counted")
            return [counts_table(counts)]
        shown = [counts_summary(counts), ""]
        if case.calibration is not None:
            from dsv3_plugin.report.plan.calibration import calibration_tables

            shown += [calibration_tables(case.calibration), ""]
        return [*shown, plan_tables(case.plan, case.balanced, every_rank=self.ranks)]

    def write_comparison(self, cases: list[Case]) -> None:
        """Several, side by side; what does not fit is said of each."""
        self._write_page(cases)
        if self.json:
            self._dump({"recipes": [{"name": case.name, **_mapping(case)} for case in cases]})
            return
        console = Console()
        for grid in comparison(cases):
            console.print(grid.table())
            console.print()
        for remark in remarks(cases):
            console.print(remark)

    def _write_page(self, cases: list[Case]) -> None:
        if self.html is None:
            return
        if all(case.plan is None for case in cases):
            raise UserError(f"--html is the page of a plan, and {cases[0].name} is only counted")
        from dsv3_plugin.report.plan.page import write_page  # the one that needs jinja2

        write_page(cases, self.html)

    def _dump(self, mapping: dict[str, Any]) -> None:
        say_json(mapping)


def refuse_no_page(page: Path) -> None:
    """Raise UserError for what cannot become a page, before anything is computed for it."""
    refuse_other_ending("--html", page, ".html", ".htm")
    with write_errors_as(lambda reason: f"cannot write {page}: {reason}"):
        if page.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not os.access(page.parent.resolve(strict=True), os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _mapping(case: Case) -> dict[str, Any]:
    """What `--json` prints: the counts, and of a recipe its plan."""
    counts = counts_mapping(case.model, case.seq_length)
    if case.plan is None:
        return counts
    told = counts | plan_mapping(case.plan)
    if case.calibration is not None:
        from dsv3_plugin.report.plan.calibration import calibration_mapping

        told["calibration"] = calibration_mapping(case.calibration)
    return told
