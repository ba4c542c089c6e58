"""Which rank failed first, where ranks ran under srun. No torch here.

srun says of each task that ended badly how it did, in the order in which it heard of it, into the
output of the job: `srun: error: n2: task 1: Killed`, or `tasks 0-3: Exited with exit code 1`. The
others fail after it, since they waited for it; they may be heard of before it, and are told from it
by how they ended.
"""

import re
from collections.abc import Iterator

_ENDED_BADLY = re.compile(
    r"^srun: error: [\w.-]+(?:\[[\d,-]+\])?: tasks? ([\d,-]+): (.*)", re.MULTILINE
)
_SRUN_ENDS_THEM = re.compile(
    r"^srun: (?:Job step aborted|error: Timed out waiting for job step)", re.MULTILINE
)
"""What srun writes before it kills those that are left."""
_FROM_OUTSIDE = (
    "Killed",
    "Out Of Memory",
    "Segmentation fault",
    "Bus error",
    "Illegal instruction",
)
_HAS_SAID_WHY = ("Exited with exit code 2", "Exited with exit code 75")
"""Of a rank that has lost another, among others."""


def failed_first(output: str, start_mark: str) -> list[int]:
    """Ranks that ended badly since a job's run was started last, the first first.

    Args:
        output: what the job's script printed.
        start_mark: the line that each start begins with.
    """
    since = output.rpartition(start_mark)[2]
    by_srun = _SRUN_ENDS_THEM.search(since)
    left_until = len(since) if by_srun is None else by_srun.start()
    found = sorted(
        _ENDED_BADLY.finditer(since),
        key=lambda end: _waited(end[2], alone=end.start() < left_until),
    )
    return list(dict.fromkeys(rank for end in found for rank in _numbers(end[1])))


def _waited(how: str, *, alone: bool) -> int:
    """How likely a rank ended since it had waited for another, by how it did: 0, 1 or 2.

    Args:
        how: in srun's words.
        alone: whether srun had not begun to end those that were left.
    """
    if how.startswith(_FROM_OUTSIDE):
        return 0 if alone else 2
    return 2 if how.startswith(_HAS_SAID_WHY) else 1


def _numbers(written: str) -> Iterator[int]:
    """The numbers of Slurm's `0,2-4`."""
    for part in written.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
