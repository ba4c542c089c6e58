"""`dsv3 import` and `dsv3 export`: Hugging Face folders and checkpoints, each from the other."""

import contextlib
import json
import signal
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from dsv3_plugin.cli.notes import note
from dsv3_plugin.cli.options import Json
from dsv3_plugin.errors import UserError
from dsv3_plugin.numbers import bytes_text, number_of, time_text
from dsv3_plugin.terminal import lines
from dsv3_plugin.terminal.lines import say

if TYPE_CHECKING:
    from dsv3_plugin.checkpoint.conversion.convert import Report
    from dsv3_plugin.checkpoint.conversion.stream import Ahead

_READ_RATE = 1e9
"""Bytes a second by which a time is said beforehand: what two workers were measured at."""

Workers = Annotated[int, typer.Option(help="Threads.", min=1)]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read *.bin weights, as tensors only.")
]
WithoutMtp = Annotated[
    bool,
    typer.Option(
        "--without-mtp",
        help="The folder lacks the multi-token prediction layers that config.json promises, as "
        "transformers saves it.",
    ),
]


def import_(
    hf_dir: Annotated[Path, typer.Argument(help="Hugging Face folder.")],
    checkpoint: Annotated[Path, typer.Argument(help="New folder for the checkpoint.")],
    workers: Workers = 2,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="bf16, fp32 or keep-fp8; by default each tensor's own, FP16 too, and bf16 for FP8."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a killed import.")] = False,
    allow_pickle: AllowPickle = False,
    without_mtp: WithoutMtp = False,
    as_json: Json = False,
) -> None:
    """Turn a Hugging Face folder into a Megatron checkpoint, streamed."""
    from dsv3_plugin.checkpoint import import_hf
    from dsv3_plugin.cli.progress import bytes_done

    with _resumable("import", checkpoint), bytes_done("import") as progress:
        report = import_hf(
            hf_dir,
            checkpoint,
            workers=workers,
            dtype=dtype,
            resume=resume,
            allow_pickle=allow_pickle,
            without_mtp=without_mtp,
            progress=progress,
            announce=lambda ahead: said_before("import", checkpoint, ahead),
        )
    _say_outcome("imported", checkpoint, report, as_json=as_json)


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint, imported or trained.")],
    hf_dir: Annotated[Path, typer.Argument(help="New folder for the Hugging Face model.")],
    dtype: Annotated[
        str | None,
        typer.Option(
            help="bf16 or fp32; by default each tensor's own, FP16 too. With --fp8, of the weights "
            "that do not become FP8."
        ),
    ] = None,
    fp8: Annotated[bool, typer.Option("--fp8", help="Linear weights in DeepSeek's FP8.")] = False,
    fp8_rule: Annotated[
        str,
        typer.Option(
            help="Scales of weights that were never FP8: reversible (quantising again changes "
            "nothing) or deepgemm (the bytes that DeepGEMM makes)."
        ),
    ] = "reversible",
    shard_size: Annotated[
        str | None, typer.Option(help="Size of a safetensors file; 5GB by default.")
    ] = None,
    shards_as: Annotated[
        Path | None,
        typer.Option(
            metavar="HF_DIR",
            help="Divide the tensors among files as this folder of the same model does.",
        ),
    ] = None,
    workers: Workers = 2,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a killed export.")] = False,
    as_json: Json = False,
) -> None:
    """Turn a checkpoint into a Hugging Face folder that transformers loads, streamed."""
    from dsv3_plugin.checkpoint import export_hf
    from dsv3_plugin.checkpoint.formats.shard_size import DEFAULT_SHARD, shard_bytes
    from dsv3_plugin.cli.progress import bytes_done

    if shards_as is not None and shard_size is not None:
        raise UserError(
            f"--shards-as takes the shards of {shards_as}, and --shard-size makes others: leave "
            "one out"
        )
    with _resumable("export", hf_dir), bytes_done("export") as progress:
        report = export_hf(
            checkpoint,
            hf_dir,
            dtype=dtype,
            fp8=fp8,
            fp8_rule=fp8_rule,
            shard_size=DEFAULT_SHARD if shard_size is None else shard_bytes(shard_size),
            shards_as=shards_as,
            workers=workers,
            resume=resume,
            progress=progress,
            announce=lambda ahead: said_before("export", hf_dir, ahead),
        )
    _say_outcome("exported", hf_dir, report, as_json=as_json)


@contextlib.contextmanager
def _resumable(verb: str, target: Path) -> Iterator[None]:
    """Say how a conversion is gone on with that is interrupted by Ctrl-C, or by SIGTERM."""
    ended: list[int] = []

    def end(number: int, _frame: FrameType | None) -> None:
        ended.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        if _is_unfinished(target):
            note(f"{target} is unfinished: the same dsv3 {verb} with --resume goes on with it.")
        if ended:
            raise typer.Exit(128 + signal.SIGTERM) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_unfinished(target: Path) -> bool:
    from dsv3_plugin.checkpoint.tracker import INCOMPLETE

    return (target / INCOMPLETE).exists()


def _say_outcome(verb: str, target: Path, report: "Report", *, as_json: bool) -> None:
    if as_json:
        say(json.dumps({"folder": str(target), **asdict(report)}))
    else:
        say(outcome(verb, target, report))
    for sentence in report.notes:
        note(sentence)


def outcome(verb: str, target: Path, report: "Report") -> str:
    """One line on a finished conversion."""
    if report.was_complete:
        return (
            f"{target} was complete already: {number_of(report.tensors, 'tensor')}, "
            f"{bytes_text(report.target_bytes)}, are as its manifest says "
            f"(checked in {report.seconds:.1f} s)."
        )
    kept = report.kept
    read, written = report.source_bytes - kept.source_bytes, report.target_bytes - kept.bytes
    before = ""
    if kept.tensors:
        before = (
            f" ({number_of(kept.tensors, 'tensor')}, {bytes_text(kept.bytes)}, kept from before)"
        )
    line = (
        f"{verb} {tensors_text(verb, report)} into {target}{before}: {bytes_text(read)} read, "
        f"{bytes_text(written)} written, {report.seconds:.1f} s "
        f"({bytes_text(read / max(report.seconds, 1e-9))}/s)."
    )
    if report.dropped:
        line += (
            f" Dropped {len(report.dropped)} that every reader computes itself: "
            f"{report.dropped[0]}{', …' if len(report.dropped) > 1 else ''}."
        )
    return line


def tensors_text(verb: str, report: "Report") -> str:
    """How many tensors were written, and why they are not as many as were there."""
    written, there = report.tensors, report.source_tensors
    of_fp8 = f"{report.scales} scales of FP8 weights" if report.scales else ""
    if verb == "imported":
        less = [
            f"{report.copies} copies of others compared and not kept" if report.copies else "",
            f"{len(report.dropped)} dropped" if report.dropped else "",
        ]
        why = "; ".join(filter(None, [", ".join(filter(None, less)), of_fp8 and f"with {of_fp8}"]))
        return f"{written} of {there} tensors" + (f" ({why})" if why else "")
    more = [number_of(report.copies, "copy", "copies") if report.copies else "", of_fp8]
    why = " and ".join(filter(None, more))
    return number_of(written, "tensor") + (f" ({why} among them)" if why else "")


def said_before_reading(read: int) -> None:
    """Say on standard error how much a comparison is about to read, and the time at a rate."""
    lines.note(
        f"verify: {bytes_text(read)} to read; {time_text(read / _READ_RATE)} at "
        f"{bytes_text(_READ_RATE)}/s."
    )


def said_before(verb: str, target: Path, ahead: "Ahead") -> None:
    """Say on standard error what a conversion is about to do: bytes, room, and time at a rate."""
    kept = ahead.kept
    read, written = ahead.source_bytes - kept.source_bytes, ahead.target_bytes - kept.bytes
    files = f"{number_of(ahead.files, 'file')} of tensors"
    if kept.tensors:
        lines.note(
            f"{verb}: {number_of(kept.tensors, 'tensor')}, {bytes_text(kept.bytes)}, kept from "
            f"before in {target}: each is read back, and made again if it is not what was written."
        )
        files += f", {kept.files:,} of them whole"
    elif _is_unfinished(target):
        lines.note(f"{verb}: nothing was kept from before in {target}, so all is done again.")
    lines.note(
        f"{verb}: {bytes_text(read)} to read, {bytes_text(written)} to write into {target} "
        f"({files}), {bytes_text(ahead.free_bytes)} free there; "
        f"{time_text((read + kept.bytes) / _READ_RATE)} at {bytes_text(_READ_RATE)}/s."
    )
