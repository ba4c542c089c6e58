"""What a run printed: the output of its job, and each rank's log, the failing rank's first."""

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch.failing import failed_first
from dsv3_plugin.launch.job_record import record_of
from dsv3_plugin.launch.local_end import failed_first_here
from dsv3_plugin.launch.logs import end_of, since_start_in
from dsv3_plugin.launch.starts import starts_of
from dsv3_plugin.recipe.places import refuse_not_begun

START_MARK = "--- dsv3 starts "
"""What the output of a job has where its run is started."""

_LINES = 20
"""Of each log, from its end."""
_RANKS = 8
"""Whose logs are shown unasked: a run may have thousands."""
_LOOK_EVERY_S = 0.5
_CLOCKS_S = 5.0
"""By which clocks of nodes and disks may differ."""
_AT_ONCE = 1 << 20
"""Bytes that are read of what was added."""


@dataclass(frozen=True)
class LogEnd:
    """The end of a log.

    Attributes:
        title: whose, and in parentheses how that ended, or that it is of a start before.
        file: the log.
        lines: its last ones, since the run was started last.
        bytes_seen: of the file, when they were read.
    """

    title: str
    file: Path
    lines: tuple[str, ...]
    bytes_seen: int = 0


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
        return [_rank_end(rank, logs[rank])]
    ends = []
    record = record_of(run)
    starts = [] if record is None else starts_of(run, record.job)
    began = starts[-1].began if starts else 0.0
    first = failed_first_here(run, began)
    failing: list[int] = [] if first is None else [first]
    if record is not None and record.output_file.is_file():
        said, size = end_of(record.output_file)
        failing = failed_first(said, START_MARK) or failing
        lines = tuple(said.rpartition(START_MARK)[2].splitlines()[-_LINES:])
        ends.append(LogEnd(f"job {record.job}", record.output_file, lines, size))
    order = dict.fromkeys([*(rank for rank in failing if rank in logs), *logs])
    for one in [*order][:_RANKS]:
        end = _rank_end(one, logs[one])
        title = f"{end.title} (failed)" if one in failing else end.title
        if _is_older(logs[one], began):
            title = f"{end.title} (of a start before)"
        ends.append(replace(end, title=title, lines=end.lines[-_LINES:]))
    if not ends:
        refuse_not_begun(run)
        raise UserError(f"nothing has been printed yet by the run in {run.root}.")
    return ends


def _is_older(log: Path, began: float) -> bool:
    """Whether nothing was written into a log since the run was started, as long as nodes are looked
    at; by times of the file, since what stands in it has no zone."""
    try:
        return log.stat().st_mtime < began - _CLOCKS_S
    except OSError:
        return False


def _rank_end(rank: int, log: Path) -> LogEnd:
    text, size = end_of(log)
    return LogEnd(f"rank {rank}", log, tuple(since_start_in(text).splitlines()), size)


def rank_logs(run: RunFolder) -> dict[int, Path]:
    """Rank → its log, in their order."""
    found = {
        int(match[1]): path
        for path in run.logs.glob("rank*.log")
        if (match := re.fullmatch(r"rank(\d+)\.log", path.name)) is not None
    }
    return dict(sorted(found.items()))


def follow(
    run: RunFolder,
    rank: int | None,
    shown: Iterable[LogEnd],
    say: Callable[[str, str], None],
    is_over: Callable[[], bool],
) -> None:
    """Say what is added to the logs of a run, line by line, until the run is over.

    Args:
        run: the run.
        rank: whose log alone; None: the job's output and those of some ranks.
        shown: what was shown of them: each goes on behind it. What appears later, as the output of
            a job that was still waiting, is said from its beginning.
        say: takes a title and a line.
        is_over: whether nothing more will be added.
    """
    tails = {
        end.file: _Tail(end.title.partition(" (")[0], end.file, end.bytes_seen) for end in shown
    }
    while True:
        over = is_over()  # before the files are read: what was written until then is said
        for title, file in _followed(run, rank, tails).items():
            tails.setdefault(file, _Tail(title, file, 0))
        for tail in tails.values():
            for line in tail.new_lines(to_the_end=over):
                say(tail.title, line)
        if over:
            return
        time.sleep(_LOOK_EVERY_S)


def _followed(run: RunFolder, rank: int | None, already: Mapping[Path, object]) -> dict[str, Path]:
    """Title → log that there is by now."""
    logs = rank_logs(run)
    if rank is not None:
        return {f"rank {rank}": logs[rank]} if rank in logs else {}
    room = _RANKS - sum(log in already for log in logs.values())
    news = [(one, log) for one, log in logs.items() if log not in already][:room]
    found = {f"rank {one}": log for one, log in news}
    record = record_of(run)
    if record is not None and record.output_file.is_file():
        found[f"job {record.job}"] = record.output_file
    return found


class _Tail:
    """What is added to a file, in whose place another may come."""

    def __init__(self, title: str, path: Path, position: int) -> None:
        self.title = title
        self._path = path
        self._position = position
        self._rest = b""
        self._file = self._identity()

    def _identity(self) -> int | None:
        try:
            return self._path.stat().st_ino
        except OSError:
            return None

    def new_lines(self, *, to_the_end: bool) -> Iterator[str]:
        """Lines that were finished since the last call; at the end, the unfinished one too."""
        while new := self._read():
            *lines, self._rest = (self._rest + new).split(b"\n")
            for line in lines:
                yield line.decode(errors="replace")
        if to_the_end and self._rest:
            yield self._rest.decode(errors="replace")
            self._rest = b""

    def _read(self) -> bytes:
        """The next bytes, at most so many at once."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._file or status.st_size < self._position:
                    self._file, self._position, self._rest = status.st_ino, 0, b""
                file.seek(self._position)
                new = file.read(_AT_ONCE)
        except OSError:
            return b""
        self._position += len(new)
        return new


def _known(logs: Mapping[int, Path]) -> str:
    if not logs:
        return "no rank has begun to write one"
    first, *_, last = [*logs, *logs]
    return f"there are those of ranks {first} to {last}" if first != last else "there is rank 0's"
