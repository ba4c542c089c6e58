"""From what ranks compute to what they send: ordered batches of messages after every step.

A message between two ranks carries no tag; the order on the pair decides what it is. And where
nothing is buffered, as in NCCL's grouped calls, a batch ends only when every partner has posted its
side, so batches can block each other. Both are settled by a common clock: an action's tick is one
more than that of everything it waits for, a message has the tick of the action that makes it, and
every rank posts its messages, sent or received, in the order of their ticks. A receive is thus
posted about when its message is sent, often long before it is needed.

A batch holds the messages of one tick between two ranks. More would make a message wait for one
that is made later, although only the first is needed.

`validate` proves for a given schedule that no batch waits for itself.
"""

from dataclasses import dataclass

from dsv3_plugin.schedules.actions import (
    Action,
    Compute,
    Schedule,
    Transfer,
    dependencies,
    result,
    sending,
    sent_to,
)
from dsv3_plugin.schedules.order import execution_order


@dataclass(frozen=True)
class Message:
    """One tensor between two ranks, seen from one of them: sent to, or received from, `peer`."""

    transfer: Transfer
    peer: int


@dataclass(frozen=True)
class Step:
    """What a rank does at once: compute an action, then post batches of messages.

    Attributes:
        action: None for a first step that only posts.
        batches: in the order in which both ends post them, each with one peer.
    """

    action: Action | None
    batches: tuple[tuple[Message, ...], ...]

    @property
    def messages(self) -> tuple[Message, ...]:
        """Of all batches."""
        return tuple(message for batch in self.batches for message in batch)


def message_steps(schedule: Schedule) -> list[list[Step]]:
    """The steps of every rank.

    Raises:
        UserError: the schedule's actions wait for each other in a circle.
    """
    actions: list[list[tuple[int, Action]]] = [[] for _ in range(schedule.pp)]
    messages: list[list[tuple[int, Message]]] = [[] for _ in range(schedule.pp)]
    ticks: dict[Compute, int] = {}
    for rank, _, action in execution_order(schedule):
        waited_for = [ticks[need] for part in action.parts for need in dependencies(schedule, part)]
        if actions[rank]:
            waited_for.append(actions[rank][-1][0])
        tick = 1 + max(waited_for, default=-1)
        actions[rank].append((tick, action))
        for part in action.parts:
            done = result(part)
            if done is None:
                continue
            ticks[done] = tick
            peer = sent_to(schedule, done)
            if peer is not None:
                send = sending(done)
                messages[rank].append((tick, Message(send, peer)))
                messages[peer].append((tick, Message(send.partner, rank)))
    return [_interleave(*both) for both in zip(actions, messages, strict=True)]


def _interleave(
    actions: list[tuple[int, Action]], messages: list[tuple[int, Message]]
) -> list[Step]:
    """Put a rank's messages behind the last of its actions that is not later than they are.

    actions, messages: each with its tick.
    """
    # Within a tick both ends must agree too: the name of the sending side decides.
    ordered = sorted(messages, key=lambda timed: (timed[0], _sent_as(timed[1].transfer)))
    steps: list[Step] = []
    position = 0
    bounds: list[tuple[float, Action | None]] = [(-1, None), *actions]
    for index, (_, action) in enumerate(bounds):
        until = bounds[index + 1][0] if index + 1 < len(bounds) else float("inf")
        together: dict[tuple[int, int], list[Message]] = {}
        while position < len(ordered) and ordered[position][0] < until:
            tick, message = ordered[position]
            together.setdefault((tick, message.peer), []).append(message)
            position += 1
        steps.append(Step(action, tuple(map(tuple, together.values()))))
    return steps if steps[0].batches else steps[1:]


def _sent_as(transfer: Transfer) -> Transfer:
    return transfer if transfer.sends else transfer.partner
