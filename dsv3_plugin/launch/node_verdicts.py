"""Which nodes of a job are well: what their checks left in the run's folder. No torch here."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dsv3_plugin.errors import printable
from dsv3_plugin.files import json_text
from dsv3_plugin.files.atomic import replace_file
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.numbers import number_of

_NO_WORD = "it gave no sign in the time that its check has"


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a node, in phrases; nothing where it is well.

    Attributes:
        own: what somebody has to mend on that node.
        shared: what it has against the run's folder, which is no node's alone.
    """

    own: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()

    @property
    def phrases(self) -> tuple[str, ...]:
        return (*self.own, *self.shared)


@dataclass(frozen=True)
class Choice:
    """The nodes that a run starts on.

    Attributes:
        nodes: as many as it needs; empty where too few are well.
        left_out: node → what is wrong with it.
        broken: those of them that are to take no job of anybody's before they are mended.
    """

    nodes: tuple[str, ...]
    left_out: Mapping[str, Sequence[str]]
    broken: Mapping[str, Sequence[str]]


def verdict_file(run: Path, node: str) -> Path:
    """Where the check of a node leaves what it found."""
    return _folder(run) / f"{node}.json"


def remember(run: Path, node: str, verdict: Verdict) -> None:
    """Leave what a check found."""
    place = verdict_file(run, node)
    place.parent.mkdir(parents=True, exist_ok=True)
    replace_file(place, json.dumps(asdict(verdict)).encode())


def remember_broken(run: Path, broken: Mapping[str, Sequence[str]]) -> None:
    """Leave which nodes are to be drained, for the script: a line each, a tab before the reason."""
    lines = (f"{node}\tdsv3: {printable('; '.join(why))}\n" for node, why in broken.items())
    replace_file(_folder(run) / "broken", "".join(lines).encode())


def rank_file(run: Path, node: str, local_rank: int, what: str) -> Path:
    """Where a rank of a node leaves that it `began` to add up, and is `done`."""
    return _folder(run) / f"{node}.{local_rank}.{what}"


def forget(run: Path) -> None:
    """Let nothing of an earlier start count."""
    shutil.rmtree(_folder(run), ignore_errors=True)


def forget_ranks(run: Path) -> None:
    """Let no rank of an all-reduce on other nodes count for that on the next ones."""
    for what in ("began", "done"):
        for mark in _folder(run).glob(f"*.{what}"):
            mark.unlink(missing_ok=True)


def choose(run: Path, nodes: Sequence[str], needed: int) -> Choice:
    """The first nodes that are well, in Slurm's order, in which neighbours are near.

    Where none is well, it is hardly the nodes that are broken, but what they have in common.
    """
    found = {node: _verdict(run, node) for node in nodes}
    left_out = {node: verdict.phrases for node, verdict in found.items() if verdict.phrases}
    well = [node for node in nodes if node not in left_out]
    chosen = tuple(well[:needed]) if len(well) >= needed else ()
    broken = {node: verdict.own for node, verdict in found.items() if verdict.own and well}
    return Choice(chosen, left_out, broken)


def gave_signs(run: Path, nodes: Sequence[str]) -> bool:
    """Whether any node left word of its check; where none did, hardly one was looked at."""
    return any(verdict_file(run, node).exists() for node in nodes)


def at_fault(run: Path, nodes: Sequence[str], ranks_per_node: int) -> dict[str, str]:
    """Node → what is wrong, where the ranks of several nodes could not add a number up.

    A node whose ranks did not all begin is one that others waited for. Where all began, and on some
    nodes ranks were done, the others are; where it is all the same everywhere, none can be told.
    """
    began, done = (
        {
            node: sum(rank_file(run, node, one, what).exists() for one in range(ranks_per_node))
            for node in nodes
        }
        for what in ("began", "done")
    )
    absent = {node: ranks_per_node - began[node] for node in nodes if began[node] < ranks_per_node}
    if not any(began.values()):
        return {}
    if absent:
        return {
            node: f"{missing} of its {number_of(ranks_per_node, 'rank')} did not begin"
            for node, missing in absent.items()
        }
    if any(done.values()):
        return {
            node: f"{ranks_per_node - number} of its {number_of(ranks_per_node, 'rank')} did "
            "not get through an all-reduce"
            for node, number in done.items()
            if number < ranks_per_node
        }
    return {}


def _verdict(run: Path, node: str) -> Verdict:
    try:
        said = json_text.read_object(verdict_file(run, node))
        return Verdict(*(tuple(map(str, said[key])) for key in ("own", "shared")))
    except (OSError, ValueError, KeyError, TypeError):
        return Verdict(own=(_NO_WORD,))


def _folder(run: Path) -> Path:
    return RunFolder(run).launch / "check"
