"""What is wrong with a node, by what its driver, its adapters, its clock and its disks say. Pure.

Each function takes what was read and yields phrases; `launch/node_check.py` reads it. No torch.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from dsv3_plugin.numbers import bytes_text, number_of

QUERIES = tuple(
    f"index,ecc.errors.uncorrected.volatile.total,{reasons}.hw_slowdown"
    for reasons in ("clocks_event_reasons", "clocks_throttle_reasons")
)
"""Of `nvidia-smi --query-gpu`, as newer drivers call it and older: a device, errors of its memory
that nothing mended since it was reset, and whether its own protection (heat, power brake) slows it
down."""

CLOCK_S = 1.0
"""A clock that is kept is off by milliseconds (NTP)."""


@dataclass(frozen=True)
class Disk:
    """A folder that has to be there, and to have room.

    Attributes:
        folder: which.
        free: bytes; None: it cannot be written.
        needed: bytes.
    """

    folder: str
    free: int | None
    needed: int


def of_gpus(found: int, expected: int, rows: str, links: str) -> Iterator[str]:
    """What is wrong with GPUs.

    Args:
        found: how many the driver shows.
        expected: how many the cluster's file says.
        rows: `nvidia-smi --query-gpu=… --format=csv,noheader`, by `QUERIES`.
        links: `nvidia-smi nvlink --status`.
    """
    if found < expected:
        yield f"{number_of(found, 'GPU')}, of {expected} that the cluster's file says"
    for row in filter(str.strip, rows.splitlines()):
        index, uncorrected, slowed, *_ = (*map(str.strip, row.split(",")), "", "")
        if uncorrected.isdecimal() and int(uncorrected):
            yield f"GPU {index} has {uncorrected} uncorrected errors of its memory"
        if slowed == "Active":
            yield f"GPU {index} is slowed down by its own protection (hw_slowdown)"
    gpu = ""
    for line in map(str.strip, links.splitlines()):
        if line.startswith("GPU "):
            gpu = line.partition(":")[0]
        elif line.startswith("Link ") and line.endswith("<inactive>"):
            yield f"{gpu} has an inactive NVLink ({line.partition(':')[0]})"


def of_adapters(states: Mapping[str, str], wanted: str | None) -> Iterator[str]:
    """What is wrong with InfiniBand.

    Args:
        states: adapter → what its port says (`4: ACTIVE`).
        wanted: NCCL_IB_HCA: names, or beginnings of names unless a `=` is before them; None, or
            with a `^` before them: not said which are used, and nothing is looked at.
    """
    if not wanted or wanted.startswith("^"):
        return
    exactly = wanted.startswith("=")
    for name in (entry.partition(":")[0] for entry in wanted.removeprefix("=").split(",")):
        found = {
            adapter: state
            for adapter, state in states.items()
            if adapter == name or (not exactly and adapter.startswith(name))
        }
        if not found:
            yield f"there is no adapter {name} (NCCL_IB_HCA)"
        for adapter, state in found.items():
            if "ACTIVE" not in state:
                yield f"the port of {adapter} is not active ({state.strip()})"


def of_clock(ahead_s: float) -> Iterator[str]:
    """What is wrong with a clock that is ahead of the file system's by so many seconds."""
    if abs(ahead_s) > CLOCK_S:
        which = "ahead of" if ahead_s > 0 else "behind"
        yield f"its clock is {abs(ahead_s):.1f} s {which} that of the run's file system"


def of_disks(disks: Iterable[Disk]) -> Iterator[str]:
    """What is wrong with folders."""
    for disk in disks:
        if disk.free is None:
            yield f"{disk.folder} cannot be written there"
        elif disk.free < disk.needed:
            yield (
                f"{bytes_text(disk.free)} are free in {disk.folder}, of "
                f"{bytes_text(disk.needed)} that it takes"
            )
