"""Steps that were measured: those of a run, from its `metrics.jsonl`, or a table of them.

A table is YAML (`rows:`, a list) or CSV (a header line), one step a row: a recipe, overrides of it,
the cluster, and either `step_seconds` or `tokens_per_second_per_gpu`.
"""

import csv
import io
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Self

import pydantic
from pydantic import Field

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.json_text import read_bytes
from dsv3_plugin.files.metrics_file import MetricsFile, Record
from dsv3_plugin.files.named import named
from dsv3_plugin.files.run_folder import RECIPE, RunFolder
from dsv3_plugin.planner.cluster import Amount, Cluster, load_cluster
from dsv3_plugin.planner.resolve import resolve
from dsv3_plugin.recipe import yaml_text
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.recipe.places import refuse_not_begun, run_at
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.recipe.section import Section, Size
from dsv3_plugin.recipe.validation import validate

WARM_UP = 2
"""Steps at a run's beginning that are left out: they compile, and find their memory."""
FEWEST = 3
"""Steps that a median is taken of."""
_MOST_BATCHES = 8
"""Batch sizes of one run: a growing batch has hundreds, each of which is simulated."""
_MOST_ROWS = 100


@dataclass(frozen=True)
class Measured:
    """A step that was measured.

    Attributes:
        name: which.
        recipe: how.
        cluster: where.
        batch: sequences of the step.
        seconds: how long it took.
        steps: how many such steps `seconds` is the median of.
    """

    name: str
    recipe: Recipe
    cluster: Cluster
    batch: int
    seconds: float
    steps: int = 1


@dataclass(frozen=True)
class Measurements:
    """What a file says.

    Attributes:
        rows: the steps.
        notes: sentences on what was left out, and why.
    """

    rows: tuple[Measured, ...]
    notes: tuple[str, ...] = ()


class Row(Section):
    """A row of a table."""

    name: str | None = None
    """What it is called; by default its recipe and overrides."""
    recipe: str
    """Shipped name or path; beside the table, or from the working directory."""
    overrides: list[str] = Field(default=[])
    """Of the recipe, `key.path=value`."""
    cluster: str | None = None
    """Shipped name or path, looked for like a recipe; by default that which is calibrated."""
    batch: Size | None = None
    """Sequences of the step; by default those of the recipe's last one."""
    step_seconds: Amount | None = None
    """How long it took."""
    tokens_per_second_per_gpu: Amount | None = None
    """The same, as tokens per second and device."""
    source: str | None = None
    """Where it is from."""
    remarks: list[str] = Field(default=[])
    """What tells it apart."""

    @pydantic.model_validator(mode="after")
    def _measured(self) -> Self:
        if (self.step_seconds is None) == (self.tokens_per_second_per_gpu is None):
            raise ValueError("give either step_seconds or tokens_per_second_per_gpu")
        return self

    def measured(self, where: str, beside: Path, calibrated: Cluster) -> Measured:
        """The step that it says."""
        cluster = calibrated if self.cluster is None else load_cluster(self.cluster, beside)
        nearby = beside / self.recipe
        file = nearby if os.path.isfile(nearby) else self.recipe
        loaded = load_recipe(file, self.overrides, cluster.machine)
        recipe = resolve(loaded, cluster.machine, cluster, must_fit=False)
        batch = self.batch or recipe.batch_schedule.last
        _refuse_another_batch(recipe, batch, where)
        seconds = self.step_seconds
        if seconds is None:
            rate = self.tokens_per_second_per_gpu * recipe.parallel.processes
            seconds = batch * recipe.data.seq_length / rate
        return Measured(
            name=self.name or " ".join([self.recipe, *self.overrides]),
            recipe=recipe,
            cluster=cluster,
            batch=batch,
            seconds=seconds,
        )


class _Table(Section):
    rows: list[Row] = Field(min_length=1, max_length=_MOST_ROWS)


def read_measurements(path: str | Path, recipe: Recipe | None, cluster: Cluster) -> Measurements:
    """The steps of a run's metrics (`metrics.jsonl`, or the run's folder) or of a table.

    Args:
        path: the file.
        recipe: that of the run, where no `recipe.yaml` lies beside its metrics.
        cluster: where steps were measured that say nothing else.

    Raises:
        UserError: one sentence; no step can be had from it.
    """
    path = named(path)
    if os.path.isdir(path):
        run = run_at(path) or RunFolder(path)
        refuse_not_begun(run)
        path = run.metrics.path
    if not os.path.isfile(path):
        raise UserError(
            f"{path}: no such file: calibrate from a run's metrics.jsonl, or from a table in YAML "
            "or CSV."
        )
    if path.suffix.lower() in {".yaml", ".yml", ".csv"}:
        return _of_table(path, cluster)
    return _of_run(path, recipe, cluster)


def read_rows(path: Path) -> list[Row]:
    """The rows of a table."""
    if path.suffix.lower() != ".csv":
        return validate(_Table, yaml_text.read_mapping(path), str(path)).rows
    rows = [validate(Row, _told(cells, where), where) for where, cells in _csv_rows(path)]
    if not rows:
        raise UserError(f"{path}: holds no rows.")
    if len(rows) > _MOST_ROWS:
        raise UserError(f"{path}: has {len(rows):,} rows, and {_MOST_ROWS} are the most.")
    return rows


def _of_table(path: Path, cluster: Cluster) -> Measurements:
    rows, notes = [], []
    for number, row in enumerate(read_rows(path), start=1):
        where = f"{path}, row {number}"
        try:
            measured = row.measured(where, path.parent, cluster)
        except UserError as error:
            text = str(error)
            raise UserError(text if text.startswith(where) else f"{where}: {text}") from error
        if measured.cluster.gpu == cluster.gpu:
            rows.append(measured)
        else:
            notes.append(
                f"'{measured.name}' was measured on {measured.cluster.gpu}, not on {cluster.gpu}, "
                "and is left out"
            )
    if not rows:
        raise UserError(
            f"{path}: none of its rows was measured on {cluster.gpu}: name their cluster with "
            "--cluster."
        )
    return Measurements(tuple(rows), tuple(notes))


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        text = read_bytes(path, yaml_text.MOST_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except ValueError as error:
        raise UserError(f"{path}: is not a text file in UTF-8 of a table's size.") from error
    try:
        for number, cells in enumerate(csv.DictReader(io.StringIO(text), strict=True), start=1):
            yield f"{path}, row {number}", cells
    except csv.Error as error:
        raise UserError(f"{path}: is not CSV ({error}).") from error


def _told(cells: dict[str, Any], where: str) -> dict[str, Any]:
    """What the cells of a row say; an empty cell says nothing."""
    if None in cells or None in cells.values():
        raise UserError(f"{where}: has other columns than the header.")
    told: dict[str, Any] = {}
    for key, cell in cells.items():
        if key == "overrides":
            told[key] = cell.split()
        elif cell.strip():
            text = key in {"name", "recipe", "cluster", "source"}
            told[key.strip()] = cell if text else yaml_text.scalar(cell)
    return told


def _of_run(path: Path, recipe: Recipe | None, cluster: Cluster) -> Measurements:
    beside = path.parent / RECIPE
    asked = recipe
    if os.path.isfile(beside):
        recipe = load_recipe(beside, machine=cluster.machine)
    if recipe is None:
        raise UserError(
            f"{path}: no {RECIPE} lies beside it, which says what ran: name the run's recipe."
        )
    recipe = resolve(recipe, cluster.machine, cluster, must_fit=False)
    records, notes = _records(path)
    timed = [record for record in records if _is_timed(record)]
    if not timed:
        raise UserError(f"{path}: no line of it says how long a step took (step_seconds).")
    by_batch: dict[int, list[float]] = defaultdict(list)
    for record in timed[WARM_UP:]:
        if not _saves_or_evaluates(record["iteration"], recipe):
            by_batch[int(record["batch_size"])].append(record["step_seconds"])
    enough = {batch: steps for batch, steps in by_batch.items() if len(steps) >= FEWEST}
    if not enough:
        raise UserError(
            f"{path}: has {len(timed)} timed steps, and a median takes {FEWEST} of one batch size "
            f"beyond the first {WARM_UP}, none of which saves or evaluates: let the run go on."
        )
    for batch in enough:
        _refuse_another_batch(recipe, batch, str(path))
    kept = sorted(enough, key=lambda batch: len(enough[batch]), reverse=True)[:_MOST_BATCHES]
    rows = [
        Measured(
            name=f"batch {batch:,}",
            recipe=recipe,
            cluster=cluster,
            batch=batch,
            seconds=median(enough[batch]),
            steps=len(enough[batch]),
        )
        for batch in sorted(kept)
    ]
    if asked is not None and (asked.name, asked.model) != (recipe.name, recipe.model):
        notes.append(
            f"{path} has the steps of {recipe.name}, as {beside.name} beside it says, and not of "
            f"{asked.name}: they tell of {cluster.name} as far as they were taken there"
        )
    return Measurements(tuple(rows), tuple(notes))


def _records(path: Path) -> tuple[list[Record], list[str]]:
    """Whole lines of a run's metrics, and a sentence on a last one that is not."""
    metrics = MetricsFile(path)
    records, damaged = metrics.read(), metrics.damaged_lines()
    lines = len(records) + len(damaged)
    if not lines:
        raise UserError(f"{path}: is empty.")
    if damaged and damaged[0] < lines:
        raise UserError(f"{path}: line {damaged[0]} is no record, and others follow it.")
    notes = []
    if damaged:
        notes.append(
            f"{path}: its last line is cut off, as by a run that was ended while it wrote; "
            f"{len(records)} whole lines remain"
        )
    return records, notes


def _is_timed(record: Record) -> bool:
    return all(
        isinstance(value, int | float) and math.isfinite(value) and value > 0
        for value in (record.get("step_seconds"), record.get("batch_size"))
    )


def _saves_or_evaluates(iteration: int, recipe: Recipe) -> bool:
    intervals: Iterable[int | None] = (recipe.checkpoint.interval, recipe.training.eval_interval)
    return any(interval and iteration % interval == 0 for interval in intervals)


def _refuse_another_batch(recipe: Recipe, batch: int, where: str) -> None:
    """A batch that a recipe cannot have is of another run."""
    together = recipe.training.micro_batch_size * recipe.data_parallel
    if batch % together:
        raise UserError(
            f"{where}: a step of {batch:,} sequences is none of {recipe.name}, whose ranks take "
            f"{together:,} at once: name the recipe that ran."
        )
