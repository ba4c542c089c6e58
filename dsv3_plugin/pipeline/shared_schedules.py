"""Schedules that rank 0 searches for and the other ranks read.

Every rank would find the same, but 2048 of them would each take half a minute of a core.
"""

import datetime
import functools
from collections.abc import Callable

from dsv3_plugin.distributed.rank_zero_first import rank_zero_first
from dsv3_plugin.errors import UserError
from dsv3_plugin.schedules.actions import Schedule, compute_only, csv_text, parse_csv

_NAME = "search"


def searched_on_rank_zero(
    schedules: Callable[[int], Schedule], timeout_minutes: float
) -> Callable[[int], Schedule]:
    """`schedules`, asked on rank 0 alone; the same answer on every rank of the world.

    Args:
        schedules: the schedule for a number of micro-batches.
        timeout_minutes: how long the others wait.

    Raises:
        UserError: (the function returned) on every rank, what `schedules` raised on rank 0; rank 0
            has found none in time.
    """

    @functools.cache
    def schedule(micro_batches: int) -> Schedule:
        def searched() -> str:
            return csv_text(schedules(micro_batches).rows)

        try:
            text = rank_zero_first(
                f"schedule/{micro_batches}",
                searched,
                datetime.timedelta(minutes=timeout_minutes),
            )
        except TimeoutError as error:
            raise UserError(
                f"rank 0 has found no schedule of {micro_batches} micro-batches in "
                f"{timeout_minutes:g} minutes: see its log, or raise parallel.timeout_minutes."
            ) from error
        return compute_only(_NAME, parse_csv(text, _NAME))

    return schedule
