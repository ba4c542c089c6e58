"""`dsv3 doctor`: what this machine has, and what each missing thing costs."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsv3_plugin.launch.doctor import Finding
    from dsv3_plugin.terminal.console import Console


def doctor() -> None:
    """Say what this machine has, and what each missing thing costs."""
    from dsv3_plugin.launch.doctor import examine
    from dsv3_plugin.terminal.console import Console

    print_findings(examine(), Console())


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
            "" if finding.found else finding.cost,
        )
    console.print(table)
