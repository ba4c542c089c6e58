"""Who was lost, by what NCCL's watchdog wrote into the logs of ranks before it ended them.

On GPUs a rank that waits for a lost one ends by SIGABRT, from a thread of torch's, and says
nothing to the person; what it waited in stands in its log (`ProcessGroupNCCL::Watchdog`). No torch
here.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsv3_plugin.launch.logs import since_start

_TIMEOUT = re.compile(
    r"\[[EF](?P<at>\d+ [\d:.]+) [^\n]*"
    r"Watchdog caught collective operation timeout: "
    r"WorkNCCL\(SeqNum=(?P<number>\d+), OpType=(?P<collective>\w+)"
)
_STATUS = re.compile(
    r"PG GUID (?P<group>[^\n]*?) Rank \d+\][^\n]*last enqueued (?:NCCL )?work: (?P<enqueued>\d+)"
)

_UNTIL = "until NCCL's watchdog"
_SHOWN = 8
"""Ranks that a sentence names, of those that may be the cause."""


@dataclass(frozen=True)
class Timeout:
    """What a rank waited in when the watchdog ended it.

    Attributes:
        at: when, by the log: month and day, and the time of day.
        collective: by NCCL's name.
        number: of it among those of its group.
        group: name of the process group; empty where the log does not say.
        enqueued: number of the last collective of the group that this rank has begun.
    """

    at: str
    collective: str
    number: int
    group: str
    enqueued: int


@dataclass(frozen=True)
class Lost:
    """The ranks that others waited for, and what for.

    Attributes:
        ranks: one or more that may be the cause.
        sentence: how it is known, to stand after the name of the ranks.
    """

    ranks: Sequence[int]
    sentence: str


def timeout_in(log: Path) -> Timeout | None:
    """What the watchdog wrote at the end of a log, since the run was started last."""
    text = since_start(log)
    found = _TIMEOUT.search(text)
    if found is None:
        return None
    number = int(found["number"])
    status = _STATUS.search(text, found.end())
    group, enqueued = (status["group"], int(status["enqueued"])) if status else ("", number)
    return Timeout(found["at"], found["collective"], number, group, enqueued)


def lost(ranks: Mapping[int, Timeout | None]) -> Lost | None:
    """Who was lost, of ranks by what each waited in; None: the watchdog has ended nobody.

    Those that it has not ended, if any: a dead rank, or a stuck one. Otherwise those that had begun
    fewer collectives of the group than the others, and so did not come to the one waited in.
    Otherwise the one that was ended first.
    """
    ended = {rank: timeout for rank, timeout in ranks.items() if timeout is not None}
    if not ended:
        return None
    first = min(ended, key=lambda rank: (ended[rank].at, rank))
    what = ended[first]
    group = f" of group {what.group}" if what.group else ""
    where = f"{what.collective} number {what.number}{group}"
    silent = [rank for rank in ranks if rank not in ended]
    if silent:
        return Lost(
            silent, f"gave no sign, for which rank {first} waited in {where} {_UNTIL} ended it"
        )
    same = {rank: timeout for rank, timeout in ended.items() if timeout.group == what.group}
    least = min(timeout.enqueued for timeout in same.values())
    behind = [rank for rank, timeout in same.items() if timeout.enqueued == least]
    if len(behind) < len(same):
        return Lost(behind, f"did not come to {where}, where others waited {_UNTIL} ended them")
    return Lost([first], f"waited in {where} {_UNTIL} ended it first of all")


def lost_sentence(lost: Lost, step: int, log: Path, *, saved: bool) -> str:
    """What the person is told of it.

    Args:
        lost: whom the others waited for.
        step: the last that is known to be done.
        log: of the first of them.
        saved: whether there is a checkpoint.
    """
    names = ", ".join(map(str, lost.ranks[:_SHOWN]))
    if len(lost.ranks) > _SHOWN:
        names += f" and {len(lost.ranks) - _SHOWN} more"
    which = f"rank {names}" if len(lost.ranks) == 1 else f"one of ranks {names}"
    return after(f"{which} {lost.sentence},", step, log, saved=saved)


def after(what: str, step: int, log: Path, *, saved: bool) -> str:
    """The sentence of what ended a run: when, where to look, and how it goes on."""
    onward = "goes on from the last checkpoint" if saved else "begins anew, since nothing was saved"
    return f"{what} after step {step:,}: see {log}; the same command {onward}."
