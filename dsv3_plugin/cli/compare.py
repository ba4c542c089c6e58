"""`dsv3 verify` and `dsv3 inspect`: what two folders have in common, and what is in one."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsv3_plugin.cli.convert import AllowPickle, WithoutMtp, Workers, said_before_reading
from dsv3_plugin.cli.notes import note
from dsv3_plugin.cli.options import Json
from dsv3_plugin.errors import UserError
from dsv3_plugin.numbers import bytes_text, number_of
from dsv3_plugin.terminal.lines import say, say_all, say_json, show_text

if TYPE_CHECKING:
    from dsv3_plugin.checkpoint.conversion.verify import Comparison, Difference
    from dsv3_plugin.checkpoint.inspect import Findings

_LONGEST_LIST = 20
_ALL = ": --all lists them"


def verify(
    a: Annotated[Path, typer.Argument(help="Hugging Face folder, checkpoint or run.")],
    b: Annotated[
        Path | None, typer.Argument(help="The other one; `a`'s own manifest by default.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Absolute difference that counts as none; 0: bit for bit.", min=0)
    ] = 0.0,
    workers: Workers = 2,
    allow_pickle: AllowPickle = False,
    without_mtp: WithoutMtp = False,
    all_: Annotated[
        bool, typer.Option("--all", help=f"List all differences, not the {_LONGEST_LIST} largest.")
    ] = False,
    bytes_: Annotated[
        bool,
        typer.Option(
            "--bytes", help="Compare the files of both folders, each with that of its name."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare all tensors of two models, or one with its manifest; exit code 1 if any differs."""
    if bytes_:
        if b is None:
            raise UserError("--bytes compares the files of two folders: name the second")
        if tolerance or allow_pickle or without_mtp:
            raise UserError(
                "--bytes compares files, whatever is in them: --tolerance, --allow-pickle and "
                "--without-mtp belong to comparing tensors"
            )
        verify_files(a, b, workers, None if all_ else _LONGEST_LIST, as_json=as_json)
    of_two = {
        "--tolerance": tolerance,
        "--allow-pickle": allow_pickle,
        "--without-mtp": without_mtp,
    }
    if b is None and (stray := [option for option, given in of_two.items() if given]):
        raise UserError(
            f"{' and '.join(stray)} {'is' if len(stray) == 1 else 'are'} for comparing two, and "
            f"{a} alone is held against the bytes in its own manifest: name a second, or leave "
            f"{'it' if len(stray) == 1 else 'them'} out"
        )
    from dsv3_plugin.checkpoint.conversion.manifest import check
    from dsv3_plugin.checkpoint.conversion.verify import verify as compare
    from dsv3_plugin.cli.progress import bytes_done

    with bytes_done("verify") as progress:
        if b is None:
            comparison = check(a, workers=workers, progress=progress, announce=said_before_reading)
        else:
            comparison = compare(
                a,
                b,
                tolerance=tolerance,
                workers=workers,
                allow_pickle=allow_pickle,
                without_mtp=without_mtp,
                progress=progress,
                announce=said_before_reading,
            )
    if as_json:
        say(json_of(comparison))
    else:
        most = None if all_ else _LONGEST_LIST
        print_comparison(comparison, tolerance, most, by_manifest=b is None)
    for sentence in comparison.notes:
        note(sentence)
    raise typer.Exit(1 if comparison.differences else 0)


def verify_files(a: Path, b: Path, workers: int, most: int | None, *, as_json: bool) -> None:
    """Compare the files of two folders, and end with exit code 1 if any differs."""
    from dsv3_plugin.checkpoint.conversion.same_files import compare_files
    from dsv3_plugin.cli.progress import bytes_done

    with bytes_done("verify") as progress:
        found = compare_files(
            a, b, workers=workers, progress=progress, announce=said_before_reading
        )
    if as_json:
        say_json(asdict(found))
    else:
        beside = f" ({found.passed_over}, a conversion's own, is not compared)"
        say(f"{_the_same(found.equal, 'file')}, byte for byte{beside * bool(found.passed_over)}.")
        if found.only:
            files = number_of(len(found.only), "file")
            hold, are = ("holds", "is") if len(found.only) == 1 else ("hold", "are")
            say(f"{files} that {hold} no weights {are} in one folder alone:")
            _print_list(found.only, most, way=_ALL)
        if found.differences:
            say(f"{len(found.differences)} differ:")
            _print_list([_one_line(difference) for difference in found.differences], most, way=_ALL)
            say("Without --bytes tensors are compared, in whichever files they lie.")
    raise typer.Exit(1 if found.differences else 0)


def inspect(
    path: Annotated[Path, typer.Argument(help="Hugging Face folder, checkpoint or run.")],
    as_json: Json = False,
) -> None:
    """Say what is in a checkpoint or a Hugging Face folder, from headers alone.

    Exit code 1 if it is not complete, 2 if nothing can be said of it.
    """
    from dsv3_plugin.checkpoint.inspect import inspect as look

    findings = look(path)
    if as_json:
        show_text(json.dumps(findings.to_mapping(), indent=2) + "\n")
    else:
        print_findings(findings)
    raise typer.Exit(0 if findings.complete else 1)


def print_comparison(
    comparison: "Comparison", tolerance: float, most: int | None, *, by_manifest: bool = False
) -> None:
    """The differences, largest first and `most` of them, or that there are none.

    Args:
        by_manifest: the other side was a manifest, which counts every stored tensor.
    """
    by_value = comparison.equal_by_value
    if by_manifest:
        say(f"{comparison.equal} tensors are as the conversion's manifest says.")
    elif tolerance:
        say(f"{_the_same(comparison.equal, 'tensor')}, within {tolerance:g}.")
    elif by_value:
        say(
            f"{comparison.equal} tensors are the same, {comparison.equal - by_value} bit for bit "
            f"and {by_value} by value, which are stored in unlike types."
        )
    else:
        say(f"{_the_same(comparison.equal, 'tensor')}, bit for bit.")
    if comparison.scales:
        say(
            f"Not counted by themselves: {comparison.scales} scales. Each belongs to an FP8 "
            "weight; beside a weight that is not FP8, code times scale is what is compared."
        )
    if comparison.absent_copies:
        say(f"Left out on one side, as copies: {', '.join(comparison.absent_copies)}.")
    if not comparison.differences:
        return
    say(f"{len(comparison.differences)} differ:")
    order = sorted(comparison.differences, key=lambda d: _rank(d.largest), reverse=True)
    _print_list([_one_line(difference) for difference in order], most, way=_ALL)


def json_of(comparison: "Comparison") -> str:
    """A comparison as one JSON object; numbers that JSON lacks are the texts "nan" and "inf"."""
    said = asdict(comparison)
    for difference in said["differences"]:
        if (largest := difference["largest"]) is not None and not math.isfinite(largest):
            difference["largest"] = str(largest)
    return json.dumps(said)


def _one_line(difference: "Difference") -> str:
    largest = "" if difference.largest is None else f", by up to {difference.largest:.3g}"
    return f"{difference.name}: {difference.what}{largest}"


def _print_list(lines: Sequence[str], most: int | None = _LONGEST_LIST, *, way: str = "") -> None:
    """The lines, indented; of more than `most` the first ones, how many there are besides, and
    what lists those."""
    say_all(f"  {line}" for line in lines[:most])
    if most is not None and len(lines) > most:
        say(f"  … and {len(lines) - most} more{way}")


def _rank(largest: float | None) -> float:
    """Where a difference stands in the list: NaN first, then by size, and what is in one alone or
    of another shape, which has no size, last."""
    if largest is None:
        return -1.0
    return float("inf") if largest != largest else largest


def print_findings(findings: "Findings") -> None:
    """What was found in a folder."""
    from rich.table import Table

    from dsv3_plugin.terminal.console import Console

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
            f"{findings.tensors:,} in {number_of(findings.files, 'file')}, "
            f"{bytes_text(findings.bytes)}"
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
        rows[f"  {dtype}"] = (
            f"{number_of(count['tensors'], 'tensor')}, {bytes_text(count['bytes'])}"
        )
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    console = Console(soft_wrap=True, highlight=False)
    console.print(findings.path)
    console.print(table)
    for title in ("damaged", "missing", "foreign", "misshapen"):
        names = getattr(findings, title)
        if names:
            say(f"{title} ({len(names)}):")
            _print_list(names)
    for sentence in findings.advice:
        note(sentence)
    if findings.complete:
        say("complete: every tensor of the configuration is there, and nothing else.")


def _state(findings: "Findings") -> str:
    """What is to be said of a folder before anything in it."""
    if findings.unfinished:
        return f", UNFINISHED: {findings.written:,} tensors are sure to be written"
    return ", pickled: what is in it is not known" if findings.pickled else ""


def _the_same(number: int, one: str) -> str:
    return f"{number_of(number, one)} {'is' if number == 1 else 'are'} the same"
