"""`python -m dsv3_plugin.launch.node_check RUN`: is this node well enough to train on?

One process on each node of a job, before its run starts. It reads what `launch/node_health.py`
judges, and leaves the verdict in the run's folder (`launch/check/NODE.json`), where `launch/job.py`
finds it; a node that leaves none is not well. `dsv3 doctor --node` looks at the same by hand.
Nothing here is heavy: no torch.
"""

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from dsv3_plugin.files.named import named
from dsv3_plugin.files.run_folder import RECIPE, RunFolder
from dsv3_plugin.launch.node_health import QUERIES, Disk, of_adapters, of_clock, of_disks, of_gpus
from dsv3_plugin.launch.node_verdicts import Verdict, remember
from dsv3_plugin.machine import Machine
from dsv3_plugin.recipe.kept import section

_ADAPTERS = Path("/sys/class/infiniband")
_PATIENCE_S = 60
"""For nvidia-smi, which hangs where a device does: it answers within seconds otherwise."""


def problems(
    shared: Path, gpus: int, disks: Mapping[Path, int], adapters: str | None
) -> Iterator[str]:
    """What is wrong with this node, in phrases.

    Args:
        shared: a folder of the file system whose clock is the nodes' common one.
        gpus: how many GPUs it should have.
        disks: folder of its own → bytes that have to be free.
        adapters: NCCL_IB_HCA, which says what adapters NCCL uses.
    """
    if gpus:
        try:
            asked = (
                ("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader") for query in QUERIES
            )
            rows = next(filter(None, (_said(*command) for command in asked)), "")
            links = _said("nvidia-smi", "nvlink", "--status")
        except subprocess.TimeoutExpired:
            yield f"nvidia-smi does not answer within {_PATIENCE_S} s"
            rows = links = ""
        yield from of_gpus(Machine.here().gpus, gpus, rows, links)
    yield from of_adapters(_ports(), adapters)
    ahead = _ahead_of(shared)
    if ahead is not None:
        yield from of_clock(ahead)
    yield from room(disks)


def room(disks: Mapping[Path, int]) -> Iterator[str]:
    """What is wrong with folders, each of which has to have so many bytes free."""
    yield from of_disks(Disk(str(folder), _free(folder), need) for folder, need in disks.items())


def node_name() -> str:
    """What Slurm calls this node, or the manifest of a pod, which has another name itself."""
    told = (os.environ.get(name) for name in ("SLURMD_NODENAME", "NODE_NAME"))
    return next(filter(None, told), os.uname().nodename)


def _said(*command: str) -> str:
    """What a command prints; nothing where it is not there."""
    if shutil.which(command[0]) is None:
        return ""
    answer = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=_PATIENCE_S
    )
    return answer.stdout if answer.returncode == 0 else ""


def _ports() -> dict[str, str]:
    """Adapter → the state of its first port."""
    return {
        path.parents[2].name: path.read_text(encoding="ascii", errors="replace")
        for path in sorted(_ADAPTERS.glob("*/ports/1/state"))
    }


def _ahead_of(folder: Path) -> float | None:
    """By how many seconds this clock is ahead of that which dates files in a folder."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock-") as file:
            before = time.time()
            file.write(b"0")
            file.flush()
            os.fsync(file.fileno())
            dated, after = os.stat(file.name).st_mtime, time.time()
    except OSError:
        return None  # said of the disk
    # It was dated between the two, however long the file system took.
    if dated < before:
        return before - dated
    return min(0.0, after - dated)


def _free(folder: Path) -> int | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        room = os.statvfs(folder)
        with tempfile.TemporaryFile(dir=folder):
            return room.f_bavail * room.f_frsize
    except OSError:
        return None


def main() -> None:
    """Check, and leave the verdict."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--free", type=int, default=0)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--scratch-free", type=int, default=0)
    given = parser.parse_args()
    # As its job starts it: each run of a sweep may keep its checkpoints elsewhere.
    kept = section(RunFolder(given.run).launch / RECIPE, "checkpoint").get("directory")
    run = RunFolder(given.run, named(kept) if isinstance(kept, str) else None)
    own = {} if given.scratch is None else {given.scratch: given.scratch_free}
    verdict = Verdict(
        own=tuple(problems(given.run, given.gpus, own, os.environ.get("NCCL_IB_HCA"))),
        shared=tuple(room({given.run: 0, run.checkpoints: given.free})),
    )
    remember(given.run, node_name(), verdict)


if __name__ == "__main__":
    main()
