"""`dsv3 doctor`: what this machine has, and what each missing thing costs."""

import json
from typing import TYPE_CHECKING

from dsv3_plugin.cli.options import Json
from dsv3_plugin.terminal.lines import say

if TYPE_CHECKING:
    from dsv3_plugin.launch.doctor import Finding
    from dsv3_plugin.terminal.console import Console


def doctor(as_json: Json = False) -> None:
    """Say what this machine has, and what each missing thing costs."""
    from dsv3_plugin.launch.doctor import examine
    from dsv3_plugin.terminal.console import Console

    findings = examine()
    if as_json:
        say(json.dumps({found.name: {"found": found.found, **_cost(found)} for found in findings}))
    else:
        print_findings(findings, Console())


def print_findings(findings: "list[Finding]", console: "Console") -> None:
    """Print the findings as a table; a cost only where the thing is missing."""
    from rich.table import Table

    from dsv3_plugin.terminal.console import styled

    table = Table(box=None, pad_edge=False)
    for heading in ("", "found", "without it"):
        table.add_column(heading)
    for finding in findings:
        table.add_row(
            finding.name,
            styled(finding.found, "green") if finding.found else styled("no", "yellow"),
            _cost(finding).get("without_it", ""),
        )
    console.print(table)


def _cost(finding: "Finding") -> dict[str, str]:
    """What the absence of a thing means, where it is absent."""
    return {} if finding.found else {"without_it": finding.cost}
