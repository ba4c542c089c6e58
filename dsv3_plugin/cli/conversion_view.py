"""What conversions, comparisons and inspections print."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from dsv3_plugin.numbers import bytes_text

if TYPE_CHECKING:
    from dsv3_plugin.checkpoint.conversion.convert import Report
    from dsv3_plugin.checkpoint.conversion.verify import Comparison
    from dsv3_plugin.checkpoint.inspect import Findings

_LOG_SECONDS = 30.0
_LONGEST_LIST = 20


def warn_without_tokenizer(hf_dir: Path) -> None:
    """Say on standard error that an exported model came without a tokenizer."""
    if not any((hf_dir / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        print(
            f"Note: the checkpoint has no tokenizer, so {hf_dir} has none; put the model's own "
            "tokenizer files there before text goes in.",
            file=sys.stderr,
        )


@contextlib.contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Shows bytes done, rate and time left: a bar on a terminal, a line now and then in a log.

    Both go to stderr; stdout is for what was found or done.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(label)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(label: str) -> Callable[[int, int], None]:
    began = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _LOG_SECONDS or not done:
            return
        last, rate = now, done / (now - began)
        left = (total - done) / rate
        print(
            f"{label}: {bytes_text(done)} of {bytes_text(total)}, {bytes_text(rate)}/s, "
            f"{left / 60:.0f} min left",
            file=sys.stderr,
            flush=True,
        )

    return report


def report_line(verb: str, target: object, report: "Report") -> str:
    """One line on a finished conversion."""
    if report.was_complete:
        return (
            f"{target} was complete already: {report.tensors} tensors, "
            f"{bytes_text(report.target_bytes)}, are as its manifest says "
            f"(checked in {report.seconds:.1f} s)."
        )
    rate = report.source_bytes / max(report.seconds, 1e-9)
    line = (
        f"{verb} {report.tensors} tensors into {target}: {bytes_text(report.source_bytes)} read, "
        f"{bytes_text(report.target_bytes)} written, {report.seconds:.1f} s ({bytes_text(rate)}/s)."
    )
    if report.dropped:
        line += (
            f" Dropped {len(report.dropped)} that every reader computes itself: "
            f"{report.dropped[0]}{', …' if len(report.dropped) > 1 else ''}."
        )
    return line


def print_comparison(comparison: "Comparison", tolerance: float) -> None:
    """The differences, largest first, or that there are none."""
    how = f"within {tolerance:g}" if tolerance else "bit for bit"
    print(f"{comparison.equal} tensors are the same, {how}.")
    if comparison.absent_copies:
        print(f"Left out on one side, as copies: {', '.join(comparison.absent_copies)}.")
    if not comparison.differences:
        return
    print(f"{len(comparison.differences)} differ:")
    order = sorted(comparison.differences, key=lambda d: _rank(d.largest), reverse=True)
    for difference in order:
        largest = "" if difference.largest is None else f", by up to {difference.largest:.3g}"
        print(f"  {difference.name}: {difference.what}{largest}")


def _rank(largest: float | None) -> float:
    """Where a difference stands in the list: no comparison or NaN first, then by size."""
    return float("inf") if largest is None or largest != largest else largest


def print_findings(findings: "Findings") -> None:
    """What was found in a folder."""
    table = Table(show_header=False, box=None)
    rows = {
        "": findings.kind + _state(findings),
        "model": findings.model,
        "layers": findings.layers,
        "experts": findings.experts,
        "multi-token prediction": findings.mtp,
        "values of the model": (
            f"{findings.values:,} (as Hugging Face has it, copies included)"
            if findings.values
            else ""
        ),
        "tensors": (
            f"{findings.tensors:,} in {findings.files} files, {bytes_text(findings.bytes)}"
            if findings.tensors
            else ""
        ),
        "weights": f"{', '.join(findings.pickled)}, {bytes_text(findings.bytes)}"
        if findings.pickled
        else "",
        "optimizer and other state": (
            bytes_text(findings.optimizer_bytes) if findings.optimizer_bytes else ""
        ),
    }
    for dtype, count in findings.dtypes.items():
        rows[f"  {dtype}"] = f"{count['tensors']:,} tensors, {bytes_text(count['bytes'])}"
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    console = Console(soft_wrap=True, highlight=False)
    console.print(findings.path)
    console.print(table)
    for title in ("damaged", "missing", "foreign", "misshapen"):
        names = getattr(findings, title)
        if names:
            shown = names[:_LONGEST_LIST]
            rest = len(names) - len(shown)
            print(f"{title} ({len(names)}):", *shown, sep="\n  ")
            if rest:
                print(f"  … and {rest} more")
    if findings.complete:
        print("complete: every tensor of the configuration is there, and nothing else.")


def _state(findings: "Findings") -> str:
    """What is to be said of a folder before anything in it."""
    if findings.unfinished:
        return f", UNFINISHED: {findings.written:,} tensors are sure to be written"
    return ", pickled: what is in it is not known" if findings.pickled else ""
