"""A process that outlives rank 0, and says why it ended where it could not say so itself.

`python -m dsv3_plugin.launch.witness RUN RANKS SECONDS PARENT`, started by rank 0 under torchrun or
srun, where no `dsv3 train` of its own sees the ranks' ends. A byte on its standard input says that
rank 0 has told the person how it ended. Without one, as where NCCL's watchdog or the system ended
it, the witness gives the other ranks some seconds, reads what their logs end with, and writes one
sentence to the standard error that rank 0 was given. No torch here.
"""

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch.nccl_watchdog import after, lost, lost_sentence, timeout_in
from dsv3_plugin.terminal.lines import note

WATCHDOGS_SECONDS = 10.0
"""How long to wait where NCCL's watchdog has begun to end ranks: each looks at its own clock, and
writes its flight recorder before."""

_LOOK_EVERY_S = 0.5


@contextlib.contextmanager
def witnessed(directory: RunFolder, ranks: int, terminal: TextIO) -> Iterator[None]:
    """Have a witness of this process while the block lasts; who leaves it tells the rest itself.

    Args:
        directory: the run's.
        ranks: of the whole run.
        terminal: for its sentence.
    """
    words = map(str, (directory.root, ranks, WATCHDOGS_SECONDS, os.getpid()))
    witness = subprocess.Popen(
        [sys.executable, "-m", "dsv3_plugin.launch.witness", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=terminal,
        start_new_session=True,  # a signal to the job is for the ranks
    )
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.write(witness.stdin.fileno(), b".")
        witness.stdin.close()
        witness.wait()


def testimony(directory: RunFolder, ranks: int, seconds: float) -> str:
    """Why rank 0 ended, by the logs of all ranks once those have had so many seconds to end."""
    logs = {rank: directory.logs / f"rank{rank}.log" for rank in range(ranks)}
    late = time.monotonic() + seconds
    while True:
        waited = {rank: timeout_in(log) for rank, log in logs.items()}
        if all(waited.values()) or time.monotonic() > late:
            break
        time.sleep(_LOOK_EVERY_S)
    done = max((record["iteration"] for record in directory.metrics.stream()), default=0)
    missed = lost(waited)
    saved = directory.steps_saved() > 0
    if missed is None:
        return after("rank 0 ended without a word", done, logs[0], saved=saved)
    return lost_sentence(missed, done, logs[missed.ranks[0]], saved=saved)


def main() -> None:
    """Wait for the end of the parent, and speak where it has not."""
    root, ranks, seconds, parent = sys.argv[1:]
    told = sys.stdin.fileno()
    # Workers of rank 0 may hold the other end still: nothing is waited for there alone.
    os.set_blocking(told, False)
    with contextlib.suppress(ProcessLookupError):  # it is gone already
        if os.getppid() == int(parent):
            select.select([os.pidfd_open(int(parent)), told], [], [])
    with contextlib.suppress(BlockingIOError):
        if os.read(told, 1):
            return
    sentence = testimony(RunFolder(Path(root)), int(ranks), float(seconds))
    note(f"dsv3: {sentence}")


if __name__ == "__main__":
    main()
