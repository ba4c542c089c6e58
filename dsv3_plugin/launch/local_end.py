"""How the last start of a run by `dsv3 train` ended on this machine. No torch here.

A file in the run's logs says that it began, and then how it ended, for whoever looks at the run
afterwards; a job of Slurm has its own (`launch/starts.jsonl`).
"""

import contextlib
import json
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from dsv3_plugin.files import json_text
from dsv3_plugin.files.atomic import replace_file
from dsv3_plugin.files.run_folder import RunFolder

LocalState = Literal["begun", "failed", "stopped"]
"""begun: nothing was heard of its end. failed: a rank broke, or met something to mend. stopped:
as was asked for, or with all tokens had."""

_CLOCKS_S = 5.0
"""By which clocks of a disk and a process may differ."""
_A_LOG = re.compile(r"/rank(\d+)\.log\b")
_BROKE_OFF = "its process ended without a word"
_AS_WHERE = "as where it is killed, memory runs out or the machine goes down"


@dataclass(frozen=True)
class LocalEnd:
    """The last start here.

    Attributes:
        state: how it stands.
        why: a sentence on that.
        holder: who holds the folder meanwhile, as its lock says.
        time: when this was written, in seconds since 1970.
    """

    state: LocalState
    why: str
    holder: str
    time: float


def remember(run: RunFolder, state: LocalState, why: str = "") -> None:
    """Say how the start of a run stands, by the process that holds its folder.

    Where that cannot be written, on a full disk for one, nobody is told, and nothing else is wrong.
    """
    said = LocalEnd(state, why, run.holder, time.time())
    with contextlib.suppress(OSError):
        run.logs.mkdir(parents=True, exist_ok=True)
        replace_file(_place(run), json.dumps(asdict(said)).encode())


def state_here(run: RunFolder, since: float = 0.0) -> tuple[str, str] | None:
    """`failed`, `broke off` or `stopped`, and why, of a run that nothing goes on with.

    Args:
        run: the run.
        since: when somebody else began it, in seconds since 1970: what is older says nothing.

    Returns:
        None: nothing is known of that.
    """
    last = _last(run)
    if last is None:
        # What only prepares may have no ranks yet, which would say that they are there.
        broke_off = run.has_only_prepared and not since and run.holder_is_gone
        return ("broke off", _broke_off(run)) if broke_off else None
    if last.time < since:
        return None
    if last.state == "begun":
        is_last = last.holder == run.holder and run.holder_is_gone
        return ("broke off", _broke_off(run)) if is_last else None
    if _went_on(run, last.time):
        return None
    if last.state == "stopped":
        return (
            last.state,
            last.why or f"stopped, as it was asked to; the same command {run.goes_on}",
        )
    return last.state, last.why


def failed_first_here(run: RunFolder, since: float = 0.0) -> int | None:
    """The rank whose log the sentence on the end of a failed start names; None: there is none."""
    state, why = state_here(run, since) or ("", "")
    named = _A_LOG.search(why) if state == "failed" else None
    return None if named is None else int(named[1])


def _broke_off(run: RunFolder) -> str:
    where = " while its data were being prepared" if run.has_only_prepared else ""
    return f"{_BROKE_OFF}{where}, {_AS_WHERE}; the same command {run.goes_on}"


def _went_on(run: RunFolder, then: float) -> bool:
    """Whether steps were taken after a moment, by ranks that something else started."""
    try:
        return run.metrics.path.stat().st_mtime > then + _CLOCKS_S
    except OSError:
        return False


def _last(run: RunFolder) -> LocalEnd | None:
    """What the file says; None where there is none, or it is not ours."""
    try:
        said = json_text.read_object(_place(run))
        state, why, holder = said["state"], str(said["why"]), str(said["holder"])
        return LocalEnd(state, why, holder, float(said["time"])) if state in _STATES else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


_STATES = get_args(LocalState)


def _place(run: RunFolder) -> Path:
    return run.logs / "end.json"
