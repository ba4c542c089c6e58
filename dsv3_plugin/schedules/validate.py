"""Proof that a schedule trains the model: complete, in order, free of deadlock, releasing memory.

Every message names rank, slot (the column in the CSV, from 0) and reason.
"""

from collections import defaultdict
from collections.abc import Sequence

from dsv3_plugin.errors import UserError
from dsv3_plugin.schedules.actions import (
    BACKWARD,
    FORWARD,
    INPUT,
    WEIGHT,
    Action,
    Compute,
    Schedule,
    Transfer,
    dependencies,
    result,
    sending,
    sent_to,
)
from dsv3_plugin.schedules.messages import message_steps
from dsv3_plugin.schedules.order import execution_order


def validate(schedule: Schedule) -> None:
    """Raise `UserError` unless every rank can run its row and the step computes the gradient.

    That is: every stage on one rank, every computation once, forwards before backwards before
    weight gradients, no circle of waits, every activation released, and, once lowered, sends and
    receives that match in order on every pair of ranks and cannot deadlock.
    """
    check_computations(schedule)
    check_transfers(schedule, with_transfers(schedule))


def with_transfers(schedule: Schedule) -> list[list[Action | Transfer]]:
    """The rows with the sends and receives that `messages.py` puts between the actions.

    As text this is torch.distributed.pipelining's compute_comms form: `0F7`, `0SEND_F7`, ...
    """
    rows = []
    for steps in message_steps(schedule):
        row: list[Action | Transfer] = []
        for step in steps:
            if step.action is not None:
                row.append(step.action)
            row += [message.transfer for message in step.messages]
        rows.append(row)
    return rows


def check_computations(schedule: Schedule) -> None:
    """The part of `validate` that concerns computations alone."""
    _check_placement(schedule)
    home = _check_once(schedule)
    _check_complete(schedule, home)
    _check_order_on_rank(home)
    execution_order(schedule)


def _at(rank: int, slot: int) -> str:
    return f"rank {rank}, slot {slot}: "


def _check_placement(schedule: Schedule) -> None:
    for rank in range(schedule.pp):
        if next(schedule.actions(rank), None) is None:
            raise UserError(f"rank {rank} computes nothing; a schedule has one line per rank")
    for rank, slot, part in schedule.parts():
        holder = schedule.stage_ranks[part.stage]
        if holder != rank:
            raise UserError(
                f"{_at(rank, slot)}{part} is of stage {part.stage}, which rank {holder} holds; "
                "a stage lives on one rank"
            )
    for stage in range(schedule.num_stages):
        if stage not in schedule.stage_ranks:
            raise UserError(
                f"no rank holds stage {stage}, though there are stages up to "
                f"{schedule.num_stages - 1}"
            )
    present = frozenset().union(*schedule.stage_micro_batches.values())
    for m in range(max(present)):
        if m not in present:
            raise UserError(
                f"no rank computes micro-batch {m}, though there are micro-batches up to "
                f"{max(present)}"
            )


Home = dict[Compute, tuple[int, int]]


def _check_once(schedule: Schedule) -> Home:
    """Where each computation is; each may be there once, and a backward whole or split."""
    home: Home = {}
    for rank, slot, part in schedule.parts():
        if part in home:
            raise UserError(f"{_at(rank, slot)}{part} was computed already in slot {home[part][1]}")
        home[part] = (rank, slot)
    for part, (rank, slot) in home.items():
        if part.kind == BACKWARD:
            for kind in (INPUT, WEIGHT):
                half = part._replace(kind=kind)
                if half in home:
                    raise UserError(
                        f"{_at(rank, slot)}{part} is a whole backward, and {half} in slot "
                        f"{home[half][1]} repeats a part of it"
                    )
    return home


def _check_complete(schedule: Schedule, home: Home) -> None:
    for stream in schedule.streams:
        micro_batches = sorted(
            frozenset().union(*(schedule.stage_micro_batches[stage] for stage in stream))
        )
        for stage in stream:
            for m in micro_batches:
                _check_micro_batch(schedule, home, stage, m)


def _check_micro_batch(schedule: Schedule, home: Home, stage: int, m: int) -> None:
    """Forward, and backward whole or in its two parts, of one stage on one micro-batch."""
    forward, backward, input_, weight = (
        Compute(stage, kind, m) for kind in (FORWARD, BACKWARD, INPUT, WEIGHT)
    )
    if forward not in home:
        rank = schedule.stage_ranks[stage]
        reader = Compute(stage + 1, FORWARD, m)
        if reader in home and stage not in schedule.last_stages:
            raise UserError(
                f"{_at(*home[reader])}{reader} waits to receive from {forward}, which nobody "
                f"computes or sends: rank {rank} lacks it"
            )
        own = next((p for p in (backward, input_, weight) if p in home), None)
        where = _at(*home[own]) + f"{own} has no forward: " if own else f"rank {rank}: "
        raise UserError(f"{where}{forward} is missing")
    if backward in home or (input_ in home and weight in home):
        return
    where = _at(*home[forward])
    if input_ in home:
        raise UserError(
            f"{_at(*home[input_])}{input_} has no weight gradient: {weight} is missing, so the "
            f"activations of {forward} are never released"
        )
    if weight in home:
        raise UserError(f"{_at(*home[weight])}{weight} has no input gradient: {input_} is missing")
    raise UserError(
        f"{where}{forward} has no backward: {backward} (or {input_} and {weight}) is missing, so "
        "its activations are never released"
    )


def _check_order_on_rank(home: Home) -> None:
    """What one rank does on one micro-batch of one stage: F, then B or I, then W."""
    for part, (rank, slot) in home.items():
        if part.kind == FORWARD:
            continue
        before = part._replace(kind=INPUT if part.kind == WEIGHT else FORWARD)
        if home[before][1] >= slot:
            where = "in the same cell" if home[before][1] == slot else f"in slot {home[before][1]}"
            raise UserError(f"{_at(rank, slot)}{part} needs {before}, which only comes {where}")


def check_transfers(schedule: Schedule, rows: Sequence[Sequence[Action | Transfer | None]]) -> None:
    """Raise `UserError` unless sends and receives deliver everything, in order, without deadlock.

    rows: per rank, actions and transfers. Transfers between two actions are one batch; the next
        action starts when every transfer of the batch has met its other end. That is the strictest
        way to run them: what passes here also runs with sends that do not wait.
    """
    home = {
        cell: (rank, slot)
        for rank, row in enumerate(rows)
        for slot, cell in enumerate(row)
        if isinstance(cell, Transfer)
    }
    _check_partners(schedule, rows, home)
    _check_data_there(schedule, rows)
    _check_pairwise_order(schedule, rows)
    _check_rendezvous(rows, home)


def _check_partners(
    schedule: Schedule,
    rows: Sequence[Sequence[Action | Transfer | None]],
    home: dict[Transfer, tuple[int, int]],
) -> None:
    """Every result that must travel is sent and received once, by the right ranks."""
    needed: set[Transfer] = set()
    for _, _, part in schedule.parts():
        if sent_to(schedule, part) is not None:
            send = sending(part)
            needed |= {send, send.partner}
    for rank, row in enumerate(rows):
        for slot, cell in enumerate(row):
            if not isinstance(cell, Transfer):
                continue
            if home[cell] != (rank, slot):
                there, at = home[cell]
                raise UserError(f"{_at(rank, slot)}{cell} is also at rank {there}, slot {at}")
            if cell.partner not in home:
                what = (
                    f"sends what nobody receives: {cell.partner}"
                    if cell.sends
                    else f"receives what nobody sends: {cell.partner}"
                )
                raise UserError(f"{_at(rank, slot)}{cell} {what} is missing")
            if cell not in needed:
                raise UserError(
                    f"{_at(rank, slot)}{cell} moves nothing: no computation makes it, or its "
                    "maker and its reader are on one rank"
                )
            if rank != schedule.stage_ranks[cell.stage]:
                raise UserError(
                    f"{_at(rank, slot)}{cell} belongs to rank {schedule.stage_ranks[cell.stage]}, "
                    f"which holds stage {cell.stage}"
                )
    for transfer in sorted(needed - home.keys()):
        raise UserError(f"rank {schedule.stage_ranks[transfer.stage]}: {transfer} is missing")


def _check_data_there(
    schedule: Schedule, rows: Sequence[Sequence[Action | Transfer | None]]
) -> None:
    """A result is sent after it is computed, and received before it is used."""
    for rank, row in enumerate(rows):
        there: set[Compute] = set()
        for slot, cell in enumerate(row):
            if isinstance(cell, Transfer):
                kind = cell.kind[-1]
                if not cell.sends:
                    there.add(Compute(cell.partner.stage, kind, cell.micro_batch))
                elif Compute(cell.stage, kind, cell.micro_batch) not in there:
                    raise UserError(f"{_at(rank, slot)}{cell} comes before what it sends")
            elif cell is not None:
                for part in cell.parts:
                    for need in dependencies(schedule, part):
                        if need not in there:
                            raise UserError(
                                f"{_at(rank, slot)}{part} comes before {need} is received"
                            )
                there |= {given for part in cell.parts if (given := result(part)) is not None}


def _check_pairwise_order(
    schedule: Schedule, rows: Sequence[Sequence[Action | Transfer | None]]
) -> None:
    """The n-th send from one rank to another is what the other receives n-th from it."""
    sends, receives = defaultdict(list), defaultdict(list)  # (from, to) -> [(slot, transfer)]
    for rank, row in enumerate(rows):
        for slot, cell in enumerate(row):
            if isinstance(cell, Transfer):
                peer = schedule.stage_ranks[cell.partner.stage]
                if cell.sends:
                    sends[rank, peer].append((slot, cell))
                else:
                    receives[peer, rank].append((slot, cell))
    for (source, target), sent in sends.items():
        for n, ((at, send), (slot, receive)) in enumerate(
            zip(sent, receives[source, target], strict=True)
        ):
            if receive != send.partner:
                raise UserError(
                    f"{_at(target, slot)}{receive} is receive {n} from rank {source}, whose send "
                    f"{n} (slot {at}) is {send}; messages carry no tags, so the order must match"
                )


def _check_rendezvous(
    rows: Sequence[Sequence[Action | Transfer | None]], home: dict[Transfer, tuple[int, int]]
) -> None:
    """No circle of ranks, each in a batch that waits for a later batch of the next."""
    batches = [_batches(row) for row in rows]
    reached = [0] * len(rows)  # batches that a rank has posted, the last of them perhaps open
    posted: set[Transfer] = set()
    waiting: dict[Transfer, int] = {}
    runnable = list(range(len(rows)))
    while runnable:
        rank = runnable.pop()
        while True:
            if reached[rank]:
                batch = batches[rank][reached[rank] - 1]
                unmet = next((t for t in batch if t.partner not in posted), None)
                if unmet is not None:
                    waiting[unmet.partner] = rank
                    break
            if reached[rank] == len(batches[rank]):
                break
            for transfer in batches[rank][reached[rank]]:
                posted.add(transfer)
                if transfer in waiting:
                    runnable.append(waiting.pop(transfer))
            reached[rank] += 1
    if waiting:
        sentences = []
        for transfer, rank in sorted(waiting.items(), key=lambda item: item[1]):
            holder, slot = home[transfer]
            sentences.append(
                f"{_at(rank, home[transfer.partner][1])}{transfer.partner} waits for {transfer} "
                f"at rank {holder}, slot {slot}"
            )
        raise UserError("deadlock of sends and receives: " + "; ".join(sentences))


def _batches(row: Sequence[Action | Transfer | None]) -> list[list[Transfer]]:
    """Transfers of a rank by the computations that they stand between."""
    batches: list[list[Transfer]] = [[]]
    for cell in row:
        if isinstance(cell, Transfer):
            batches[-1].append(cell)
        elif cell is not None:
            batches.append([])
    return batches
