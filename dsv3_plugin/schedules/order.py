"""An order in which a schedule can run, every action after all it needs; or the circle of waits."""

from dsv3_plugin.errors import UserError
from dsv3_plugin.schedules.actions import Action, Compute, Schedule, dependencies, result


def execution_order(schedule: Schedule) -> list[tuple[int, int, Action]]:
    """(rank, slot, action) such that each rank's own order and all dependencies hold.

    Raises `UserError` when ranks wait for each other in a circle, naming every wait on it.
    """
    rows = [list(schedule.actions(rank)) for rank in range(schedule.pp)]
    position = [0] * schedule.pp
    done: set[Compute] = set()
    waiting: dict[Compute, list[int]] = {}
    order: list[tuple[int, int, Action]] = []
    runnable = list(reversed(range(schedule.pp)))
    while runnable:
        rank = runnable.pop()
        while position[rank] < len(rows[rank]):
            slot, action = rows[rank][position[rank]]
            missing = _first_missing(schedule, action, done)
            if missing is not None:
                waiting.setdefault(missing, []).append(rank)
                break
            order.append((rank, slot, action))
            position[rank] += 1
            for part in action.parts:
                if (given := result(part)) is not None:
                    done.add(given)
                    runnable += waiting.pop(given, ())
    if any(at < len(row) for at, row in zip(position, rows, strict=True)):
        raise UserError(_circle(schedule, rows, position, done))
    return order


def _first_missing(schedule: Schedule, action: Action, done: set[Compute]) -> Compute | None:
    return next(
        (
            need
            for part in action.parts
            for need in dependencies(schedule, part)
            if need not in done
        ),
        None,
    )


def _circle(
    schedule: Schedule,
    rows: list[list[tuple[int, Action]]],
    position: list[int],
    done: set[Compute],
) -> str:
    """The sentence that tells who waits for whom."""
    home = {result(part): (rank, slot) for rank, slot, part in schedule.parts()}
    waits: dict[int, tuple[str, int]] = {}
    rank = next(r for r, row in enumerate(rows) if position[r] < len(row))
    while rank not in waits:
        slot, action = rows[rank][position[rank]]
        missing = _first_missing(schedule, action, done)
        assert missing is not None
        if missing not in home:
            return f"rank {rank}, slot {slot}: {action} waits for {missing}, which no rank computes"
        holder, at = home[missing]
        waits[rank] = (
            f"rank {rank}, slot {slot}: {action} waits for {missing} at rank {holder}, slot {at}",
            holder,
        )
        rank = holder
    # Walk the circle once, from where it closed.
    sentences, walk = [], rank
    while True:
        sentence, walk = waits[walk]
        sentences.append(sentence)
        if walk == rank:
            return "deadlock: " + "; ".join(sentences)
