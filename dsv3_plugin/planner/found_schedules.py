"""Schedules that were searched for: kept as CSV, and found again instead of searched again.

A search takes up to half a minute of a core, and what it finds follows from what it is asked. So
the file is named by a digest of the question: other costs, another limit or another version of the
search are another file. Nothing depends on there being one: where it cannot be read the search is
made anew, and where it cannot be written what was found serves all the same.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from dsv3_plugin.errors import UserError
from dsv3_plugin.files import locks
from dsv3_plugin.files.full_disk import reason
from dsv3_plugin.numbers import number_of
from dsv3_plugin.schedules.actions import Schedule
from dsv3_plugin.schedules.costs import StageCosts
from dsv3_plugin.schedules.csv_file import read_csv, write_csv
from dsv3_plugin.schedules.placement import placement_of, placement_on, stage_placement
from dsv3_plugin.schedules.search.problem import EPSILON
from dsv3_plugin.schedules.search.search import VERSION, search
from dsv3_plugin.schedules.timeline import peak_activations

_NAME = "search"
_DIGITS = 16


@dataclass(frozen=True)
class Question:
    """What is searched for; the fields are those of `search`."""

    pp: int
    micro_batches: int
    costs: StageCosts
    limit: float | None = None
    seed: int = 0
    effort: float = 1.0

    @property
    def file_name(self) -> str:
        """The name of the file that holds the answer, by all that decides it."""
        asked = json.dumps([VERSION, *astuple(self)])  # a float as the shortest text that is it
        digest = hashlib.sha256(asked.encode()).hexdigest()[:_DIGITS]
        return f"{_NAME}-{self.pp}x{self.micro_batches}-{digest}.csv"

    def search(self) -> Schedule:
        """The answer."""
        found = search(
            self.pp, self.micro_batches, self.costs, self.limit, seed=self.seed, effort=self.effort
        )
        return found.schedule

    def refuse_other(self, schedule: Schedule) -> None:
        """Raise UserError unless a schedule can be the answer."""
        if (schedule.pp, schedule.num_micro_batches) != (self.pp, self.micro_batches):
            raise UserError(
                f"it is of {number_of(schedule.pp, 'rank')} and "
                f"{number_of(schedule.num_micro_batches, 'micro-batch', 'micro-batches')}"
            )
        stages = stage_placement(self.pp, self.costs.num_stages // self.pp)
        if placement_of(schedule) != placement_on(stages):
            raise UserError("its stages lie elsewhere")
        held = max(peak_activations(schedule, self.costs))
        if self.limit is not None and held > self.limit + EPSILON:
            raise UserError("it holds more activations than there is room for")


def find_or_search(question: Question, folder: Path, tell: Callable[[str], None]) -> Schedule:
    """The schedule that a folder has for a question, or a search finds and the folder keeps.

    Whoever asks at the same time waits for the one that searches, on this machine or another that
    shares the folder's file system and its locks.

    Args:
        question: what is asked.
        folder: made if need be.
        tell: takes a sentence for the person.

    Raises:
        UserError: there is no such schedule.
    """
    path = folder / question.file_name
    # Where it is there nothing has to be written, or to be waited for.
    kept = _kept(question, path, tell=lambda sentence: None)
    if kept is not None:
        return kept
    with _held(folder, tell) as held:
        if (kept := _kept(question, path, tell)) is not None:
            return kept
        tell(
            f"Searching for a schedule of "
            f"{number_of(question.micro_batches, 'micro-batch', 'micro-batches')} on "
            f"{question.pp} pipeline ranks."
        )
        found = question.search()
        if held:
            try:
                write_csv(found, path)
            except UserError as error:
                tell(f"What was found is used and not kept: {error}.")
        return found


def _kept(question: Question, path: Path, tell: Callable[[str], None]) -> Schedule | None:
    """The answer in a file; None where there is none, or it is broken."""
    if not path.exists():
        return None
    try:
        schedule = read_csv(path)
        question.refuse_other(schedule)
    except UserError as error:
        why = str(error).removeprefix(f"{path}: ")
        tell(f"{path} is not the schedule that was kept there ({why}): it is searched for anew.")
        return None
    return replace(schedule, name=_NAME)


@contextlib.contextmanager
def _held(folder: Path, tell: Callable[[str], None]) -> Iterator[bool]:
    """Whether the folder can be written, and is this process's alone while the block lasts."""

    def waiting() -> None:
        tell(f"Waiting for another process that searches for a schedule in {folder}.")

    try:
        lock = locks.wait_for(folder, waiting)
    except OSError as error:
        tell(f"What is searched for is not kept: {folder} cannot be written ({reason(error)}).")
        yield False
        return
    with lock:
        yield True
