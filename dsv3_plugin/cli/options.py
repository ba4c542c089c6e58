"""Arguments and options that several commands have in common."""

from pathlib import Path
from typing import Annotated

import typer

from dsv3_plugin.cli import completion
from dsv3_plugin.errors import UserError


def _not_empty(cluster: str | None) -> str | None:
    if cluster is not None and not cluster.strip():
        raise UserError(
            "--cluster is empty: name a cluster (h800) or its file, or leave the option out."
        )
    return cluster


def refuse_other_ending(option: str, path: Path, *endings: str) -> None:
    """Raise UserError where a file's name does not end in what an option writes.

    Args:
        option: its name (`--png`).
        path: the file that it was given.
        endings: of which the name has one; the first is the usual one (`.png`).
    """
    if path.suffix.lower() not in endings:
        raise UserError(f"{option} writes {endings[0]} files; {path} does not end so")


Recipe = Annotated[
    str,
    typer.Argument(
        help="Shipped name (pretrain/tiny, pretrain/deepseek-v3) or path.",
        autocompletion=completion.recipes,
    ),
]
Overrides = Annotated[list[str] | None, typer.Argument(help="key.path=value for this run.")]
Cluster = Annotated[
    str | None,
    typer.Option(
        metavar="NAME_OR_FILE",
        callback=_not_empty,
        autocompletion=completion.clusters,
        help="Where it is to run (h800, or a YAML file); by default the recipe's `cluster`.",
    ),
]
Imbalance = Annotated[
    float | None,
    typer.Option(help="Load of the busiest rank's experts over the mean; 1 by default."),
]
Html = Annotated[Path | None, typer.Option(help="Write it as a page that needs nothing else.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
