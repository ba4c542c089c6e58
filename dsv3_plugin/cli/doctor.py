"""`dsv3 doctor`: what this machine has, and what each missing thing costs; whether it is well."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsv3_plugin.cli import completion
from dsv3_plugin.cli.options import Json
from dsv3_plugin.errors import UserError
from dsv3_plugin.terminal.lines import say, say_json

if TYPE_CHECKING:
    from dsv3_plugin.launch.doctor import Finding
    from dsv3_plugin.terminal.console import Console


def doctor(
    as_json: Json = False,
    node: Annotated[
        bool,
        typer.Option(
            "--node", help="Look at this node as a job does before it trains there, and only that."
        ),
    ] = False,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="NAME_OR_FILE",
            help="With --node: what the node is of.",
            autocompletion=completion.clusters,
        ),
    ] = None,
) -> None:
    """Say what this machine has, and what each missing thing costs."""
    from dsv3_plugin.launch.doctor import examine
    from dsv3_plugin.terminal.console import Console

    if node:
        check_node(cluster, as_json=as_json)
        return
    if cluster is not None:
        raise UserError(
            "--cluster says what a node is of, and goes with --node: dsv3 doctor --node"
        )
    findings = examine()
    if as_json:
        say_json({found.name: {"found": found.found, **_cost(found)} for found in findings})
    else:
        print_findings(findings, Console())


def check_node(cluster: str | None, *, as_json: bool) -> None:
    """Say that this node is well.

    Raises:
        UserError: it is not.
    """
    from dsv3_plugin.launch.doctor import examine_node
    from dsv3_plugin.planner.cluster import load_cluster

    report = examine_node(None if cluster is None else load_cluster(cluster), Path.cwd())
    if as_json:
        say_json(dataclasses.asdict(report))
    if report.problems:
        raise UserError(
            f"node {report.name} is not well: {'; '.join(report.problems)}; have it mended, or "
            f'leave it out with launch.options: ["--exclude={report.name}"] in the cluster\'s file.'
        )
    if not as_json:
        say(f"Node {report.name} is well: {', '.join(report.looked_at)}.")


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
