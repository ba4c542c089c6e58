"""Which rank failed first, where ranks ran under srun. No torch here.

srun says of each task that ended badly how it did, in the order in which it heard of it, into the
output of the job: `srun: error: n2: task 1: Killed`, or `tasks 0-3: Exited with exit code 1`. The
others fail after it, since they waited for it.
"""

import re
from collections.abc import Iterator

_ENDED_BADLY = re.compile(
    r"^srun: error: [\w.-]+(?:\[[\d,-]+\])?: tasks? ([\d,-]+): ", re.MULTILINE
)


def failed_first(output: str, start_mark: str) -> list[int]:
    """Ranks that ended badly since a job's run was started last, the first first.

    Args:
        output: what the job's script printed.
        start_mark: the line that each start begins with.
    """
    since = output.rpartition(start_mark)[2]
    ranks = (rank for found in _ENDED_BADLY.findall(since) for rank in _numbers(found))
    return list(dict.fromkeys(ranks))


def _numbers(written: str) -> Iterator[int]:
    """The numbers of Slurm's `0,2-4`."""
    for part in written.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
