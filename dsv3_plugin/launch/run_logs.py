"""What a run printed: the output of its job, and each rank's log, the failing rank's first."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch.failing import failed_first
from dsv3_plugin.launch.job_record import record_of
from dsv3_plugin.launch.logs import since_start

START_MARK = "--- dsv3 starts "
"""What the output of a job has where its run is started."""

_LINES = 20
"""Of each log, from its end."""
_RANKS = 8
"""Whose logs are shown unasked: a run may have thousands."""
_LOOK_EVERY_S = 0.5
_LONGEST = 1 << 20
"""Bytes of the end of a job's output that are read."""


@dataclass(frozen=True)
class LogEnd:
    """The end of a log.

    Attributes:
        title: whose.
        file: the log.
        lines: its last ones, since the run was started last.
    """

    title: str
    file: Path
    lines: tuple[str, ...]


def log_ends(run: RunFolder, rank: int | None = None) -> list[LogEnd]:
    """The job's output and ranks' logs, as far as they were written since the last start.

    Args:
        run: the run.
        rank: whose log alone, and all of it; None: the job's output, the ranks that failed in the
            order in which they did, and some of the others.

    Raises:
        UserError: there is no such log.
    """
    logs = rank_logs(run)
    if rank is not None:
        if rank not in logs:
            raise UserError(f"rank {rank} has no log in {run.logs}: {_known(logs)}.")
        return [LogEnd(f"rank {rank}", logs[rank], tuple(since_start(logs[rank]).splitlines()))]
    ends = []
    failing: list[int] = []
    record = record_of(run)
    if record is not None and record.output_file.is_file():
        said = _end_of(record.output_file)
        failing = failed_first(said, START_MARK)
        lines = tuple(said.rpartition(START_MARK)[2].splitlines()[-_LINES:])
        ends.append(LogEnd(f"job {record.job}", record.output_file, lines))
    order = dict.fromkeys([*(rank for rank in failing if rank in logs), *logs])
    for one in [*order][:_RANKS]:
        title = f"rank {one}" + (" (failed)" if one in failing else "")
        ends.append(LogEnd(title, logs[one], tuple(since_start(logs[one]).splitlines()[-_LINES:])))
    if not ends:
        raise UserError(f"nothing has been printed yet by the run in {run.root}.")
    return ends


def rank_logs(run: RunFolder) -> dict[int, Path]:
    """Rank → its log, in their order."""
    found = {
        int(match[1]): path
        for path in run.logs.glob("rank*.log")
        if (match := re.fullmatch(r"rank(\d+)\.log", path.name)) is not None
    }
    return dict(sorted(found.items()))


def follow(files: Mapping[str, Path], say: Callable[[str, str], None]) -> None:
    """Say what is added to files from now on, line by line, until Ctrl-C.

    Args:
        files: title → file; one that is not there yet may come.
        say: takes a title and a line.
    """
    tails = {title: _Tail(path) for title, path in files.items()}
    while True:
        for title, tail in tails.items():
            for line in tail.new_lines():
                say(title, line)
        time.sleep(_LOOK_EVERY_S)


class _Tail:
    """What is added to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = path.stat().st_size if path.exists() else 0
        self._rest = b""

    def new_lines(self) -> Iterator[str]:
        """Lines that were finished since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                new = file.read()
        except OSError:
            return
        self._position += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace")


def _end_of(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _LONGEST))
        return file.read().decode(errors="replace")


def _known(logs: Mapping[int, Path]) -> str:
    if not logs:
        return "no rank has begun to write one"
    first, *_, last = [*logs, *logs]
    return f"there are those of ranks {first} to {last}" if first != last else "there is rank 0's"
