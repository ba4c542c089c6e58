"""What became of runs: a line each, by the files of their folders. No torch here."""

import contextlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.run_folder import RECIPE, RunFolder
from dsv3_plugin.launch.status import RunStatus, since
from dsv3_plugin.numbers import time_text, tokens_text
from dsv3_plugin.recipe.yaml_text import read_mapping
from dsv3_plugin.report.losses import RunLosses

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class RunLine:
    """A run among others. What is not known is None.

    Attributes:
        folder: its folder.
        stage: which part of a model's life it is.
        state: as `dsv3 status` has it.
        step, tokens, loss: of the last step.
        saved_step: of the newest checkpoint, from which the run goes on; 0 if there is none.
        steps: of the whole run.
        held_out_loss: of the last evaluation.
        tokens_per_second: as it is in the middle of the last steps.
        changed_at: when its last line was written, in seconds since 1970.
    """

    folder: Path
    stage: str | None
    state: str
    step: int
    saved_step: int
    steps: int | None
    tokens: int
    loss: float | None
    held_out_loss: float | None
    tokens_per_second: float | None
    changed_at: float | None


def line_of(run: RunFolder, status: RunStatus) -> RunLine:
    """A run among others.

    Args:
        run: its folder.
        status: how it stands.
    """
    losses = RunLosses(str(run.root))
    for record in run.metrics.stream():
        losses.add(record)
    metrics = run.metrics.path
    return RunLine(
        folder=status.folder,
        stage=_stage(run),
        state=status.state,
        step=status.step,
        saved_step=status.saved_step,
        steps=status.steps,
        tokens=status.tokens,
        loss=status.loss,
        held_out_loss=losses.held_out[-1][1] if losses.held_out else None,
        tokens_per_second=losses.speed,
        changed_at=metrics.stat().st_mtime if metrics.is_file() else None,
    )


def _stage(run: RunFolder) -> str | None:
    """As the recipe says that the run keeps, or that it was launched with."""
    for recipe in (run.recipe, run.launch / RECIPE):
        with contextlib.suppress(UserError):
            if recipe.is_file() and isinstance(said := read_mapping(recipe).get("stage"), str):
                return said
    return None


def mapping(line: RunLine) -> dict[str, Any]:
    """A line for JSON."""
    return asdict(line) | {"folder": str(line.folder)}


def table(lines: Iterable[RunLine]) -> "Table":
    """A row for each run."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False)
    for heading in ("run", "stage", "state"):
        shown.add_column(heading)
    for heading in ("step", "saved", "tokens", "loss", "held out", "tokens/s", "last step"):
        shown.add_column(heading, justify="right")
    for line in lines:
        age = since(line.changed_at)
        shown.add_row(
            str(line.folder),
            line.stage or "",
            line.state,
            f"{line.step:,}" + ("" if line.steps is None else f"/{line.steps:,}"),
            f"{line.saved_step:,}" if line.saved_step else "never",
            tokens_text(line.tokens),
            _number(line.loss),
            _number(line.held_out_loss),
            "" if line.tokens_per_second is None else f"{line.tokens_per_second:,.0f}",
            "" if age is None else f"{time_text(age)} ago",
        )
    return shown


def _number(loss: float | None) -> str:
    return "" if loss is None else f"{loss:.4f}"
