"""`dsv3 doctor`: what this machine has, and what each missing thing costs."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from dsv3_plugin.launch.doctor import Finding


def doctor() -> None:
    """Say what this machine has, and what each missing thing costs."""
    from rich.console import Console

    from dsv3_plugin.launch.doctor import examine

    print_findings(examine(), Console())


def print_findings(findings: "list[Finding]", console: "Console") -> None:
    """Print the findings as a table; a cost only where the thing is missing."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("", "found", "without it"):
        table.add_column(heading)
    for finding in findings:
        table.add_row(
            finding.name,
            f"[green]{escape(finding.found)}[/green]" if finding.found else "[yellow]no[/yellow]",
            "" if finding.found else escape(finding.cost),
        )
    console.print(table)
