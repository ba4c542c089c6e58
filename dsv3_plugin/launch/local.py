"""The processes of one run on this machine: started together, stopped together.

The standard launcher (`torchrun`) restarts workers and prints their tracebacks; a run on a laptop
wants neither. Each rank gets the environment that torch.distributed reads (`RANK`, `WORLD_SIZE`,
`LOCAL_RANK`), its own log file, a pipe to its parent, and the parent's fate: if the parent dies, so
does it.

The ranks meet in a file in memory that the parent hands them, and not at a port: to a port any user
of the machine can connect, and whoever writes into the store of a rendezvous joins the run.
"""

import contextlib
import ctypes
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsv3_plugin.distributed.messages import PIPE, Inbox, Message
from dsv3_plugin.files.atomic import append_to
from dsv3_plugin.launch.logs import start_line
from dsv3_plugin.launch.nccl_watchdog import Lost, lost, timeout_in

STORE = "DSV3_STORE_FD"
"""Environment variable with the descriptor of the file in which the ranks meet."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Failure:
    """Why a run failed: the rank that did first, how it ended, and what it told, if anything.

    `lost`: whom ranks waited for that NCCL's watchdog ended, where it was that.
    """

    rank: int
    exit_code: int
    log: Path
    message: Message | None
    lost: Lost | None = None

    @property
    def signal(self) -> signal.Signals | None:
        """The signal that ended the rank."""
        return signal.Signals(-self.exit_code) if self.exit_code < 0 else None


class LocalProcesses:
    """`processes` copies of `python -m module arguments…`, one per rank."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        processes: int,
        log_directory: Path,
    ) -> None:
        log_directory.mkdir(parents=True, exist_ok=True)
        self.logs = [log_directory / f"rank{rank}.log" for rank in range(processes)]
        self.inbox = Inbox()
        self._processes: list[subprocess.Popen[bytes]] = []
        store = os.memfd_create("where the ranks of a run meet")
        common = {
            # What ranks tell each other stays on this machine.
            "GLOO_SOCKET_IFNAME": "lo",
            **os.environ,
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONIOENCODING": "utf-8:backslashreplace",
            PIPE: str(self.inbox.writer),
            STORE: str(store),
        }
        try:
            for rank, log in enumerate(self.logs):
                with append_to(log) as output:
                    output.write(start_line())
                    output.flush()
                    self._processes.append(
                        subprocess.Popen(
                            [sys.executable, "-m", module, *arguments],
                            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                            stdin=subprocess.DEVNULL,
                            stdout=output,
                            stderr=subprocess.STDOUT,
                            pass_fds=(self.inbox.writer, store),
                            # Its own group: Ctrl-C reaches the parent alone, which asks politely,
                            # and a kill reaches the rank's own helpers too.
                            process_group=0,
                            preexec_fn=_dying_with(os.getpid()),
                        )
                    )
        finally:
            os.close(store)
        self.inbox.close_writer()

    @property
    def running(self) -> bool:
        """Whether any rank is still there."""
        return any(process.poll() is None for process in self._processes)

    @property
    def failed(self) -> bool:
        """Whether any rank ended with an error."""
        return any(process.poll() not in (None, 0) for process in self._processes)

    @property
    def aborting(self) -> bool:
        """Whether ranks end by SIGABRT, as NCCL's watchdog ends them, and some are still there."""
        codes = [process.poll() for process in self._processes]
        return {*codes} == {None, -signal.SIGABRT}

    def failure(self) -> Failure | None:
        """What went wrong first, None if nothing did.

        When one rank dies the others fail in their collectives moments later. SIGKILL
        explains most, then a sentence for the user, another signal, the crash that was told first,
        and last what ranks waited for when NCCL's watchdog ended them.
        """
        ended = {
            rank: process.returncode
            for rank, process in enumerate(self._processes)
            if process.poll() not in (None, 0)
        }
        self.inbox.receive()

        def failure(rank: int, message: Message | None = None) -> Failure:
            return Failure(rank, ended.get(rank, 2), self.logs[rank], message)

        told = sorted(self.inbox.received, key=lambda message: message.time)
        # Its rank may still be on its way out.
        refusals = [message for message in told if message.kind == "refused"]
        crashes = [
            message for message in told if message.kind == "crashed" and message.rank in ended
        ]
        waited = {
            rank: timeout_in(log) if ended.get(rank) == -signal.SIGABRT else None
            for rank, log in enumerate(self.logs)
        }
        killed = [rank for rank, code in ended.items() if code < 0 and waited[rank] is None]
        # Nothing of ours sends it before this is asked, and others then tell whom they miss.
        ended_from_outside = [rank for rank, code in ended.items() if code == -signal.SIGKILL]
        if ended_from_outside:
            return failure(ended_from_outside[0])
        if ended and refusals:
            return failure(refusals[0].rank, refusals[0])
        if killed:
            return failure(killed[0])
        if crashes:
            return failure(crashes[0].rank, crashes[0])
        if missed := lost(waited):
            return dataclasses.replace(failure(missed.ranks[0]), lost=missed)
        return failure(min(ended)) if ended else None

    def signal(self, number: int) -> None:
        """Send a signal to every rank that is still there; SIGKILL takes its helpers along."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                if number == signal.SIGKILL and process.poll() != 0:
                    os.killpg(process.pid, number)
                elif process.poll() is None:
                    os.kill(process.pid, number)

    def stop(self, patience: float = 10.0) -> None:
        """Ask every rank to end, and after `patience` seconds make it."""
        self.signal(signal.SIGTERM)
        deadline = time.monotonic() + patience
        while self.running and time.monotonic() < deadline:
            time.sleep(0.05)
        self.signal(signal.SIGKILL)
        for process in self._processes:
            process.wait()
        self.inbox.close()


def _dying_with(parent: int) -> Callable[[], None]:
    """For the moment between fork and exec: the kernel kills this process when `parent` dies."""
    prctl = ctypes.CDLL(None).prctl

    def arrange() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the arrangement
            os._exit(1)

    return arrange
