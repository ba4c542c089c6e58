"""A search that one rank makes for all: they wait for it, and read what it found.

Every rank would find the same, but 2048 of them would each take half a minute of a core.
"""

import datetime
import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch.distributed import distributed_c10d

from dsv3_plugin.cli.schedule_options import write_csv
from dsv3_plugin.errors import UserError
from dsv3_plugin.schedules.actions import Schedule, compute_only, csv_text, parse_csv

_FOUND, _FAILED = "found\n", "failed\n"


def found_once(
    schedules: Callable[[int], Schedule], folder: Path, timeout_minutes: float
) -> Callable[[int], Schedule]:
    """`schedules`, asked on rank 0 alone; the same answer on every rank of the world.

    Args:
        schedules: the schedule for a number of micro-batches.
        folder: where rank 0 leaves `schedule-M.csv`, for people.
        timeout_minutes: how long the others wait.
    """

    def ask(micro_batches: int, key: str, store: torch.distributed.Store) -> Schedule:
        try:
            schedule = schedules(micro_batches)
            write_csv(schedule, folder / f"schedule-{micro_batches}.csv")
        except UserError as error:
            store.set(key, _FAILED + str(error))
            raise
        store.set(key, _FOUND + csv_text(schedule.rows))
        return schedule

    @functools.cache
    def schedule(micro_batches: int) -> Schedule:
        store = distributed_c10d._get_default_store()
        key = f"dsv3_plugin/schedule/{micro_batches}"
        if torch.distributed.get_rank() == 0:
            return ask(micro_batches, key, store)
        try:
            store.wait([key], datetime.timedelta(minutes=timeout_minutes))
        except RuntimeError as error:  # torch's DistStoreError among them
            raise UserError(
                f"rank 0 has found no schedule of {micro_batches} micro-batches in "
                f"{timeout_minutes:g} minutes: see its log, or raise parallel.timeout_minutes."
            ) from error
        answer = store.get(key).decode()
        if answer.startswith(_FAILED):
            raise UserError(answer.removeprefix(_FAILED))
        name = "search"
        return compute_only(name, parse_csv(answer.removeprefix(_FOUND), name))

    return schedule
