"""Ranks in time under NCCL's rules of ordering.

One `batch_isend_irecv` is one kernel on the stream of its communicator. It begins when the rank's
computation before it is done and the batch before it on that communicator has ended, and it ends
when every partner's has begun: what is posted later queues behind it, be it for another rank. So
how many communicators there are decides what waits for what. A computation waits for the batches
that bring what it needs.

What a rank does is a program of works and batches: one made of a schedule here (`nccl_spans`), or
one recorded of a rank that ran.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from dsv3_plugin.errors import UserError
from dsv3_plugin.schedules.actions import Action, Compute, Schedule, Transfer, dependencies
from dsv3_plugin.schedules.costs import StageCosts
from dsv3_plugin.schedules.messages import Message, Step, message_steps
from dsv3_plugin.schedules.timeline import Span

Posting = Callable[[int, Step], Iterable[tuple[Hashable, Sequence[Message]]]]
"""(rank, step) → (communicator, messages) of each batch that the rank posts after it; both ends of
a message must name the same communicator."""


def on_pairs(rank: int, step: Step) -> Iterator[tuple[Hashable, Sequence[Message]]]:
    """The schedule's batches, on a communicator for every two ranks that send to each other."""
    for batch in step.batches:
        yield frozenset((rank, batch[0].peer)), batch


def on_one(rank: int, step: Step) -> Iterator[tuple[Hashable, Sequence[Message]]]:
    """All messages of a step in one batch, on one communicator for the pipeline."""
    if step.messages:
        yield "pipeline", step.messages


@dataclass(frozen=True)
class Operation:
    """One end of a message: what its rank sends to, or receives from, `peer`."""

    peer: int
    sends: bool


@dataclass(eq=False)
class Batch[Op: Operation]:
    """Sends and receives that a rank posts at once on one communicator.

    Attributes:
        rank: whose.
        communicator: both ends of a message name the same.
        operations: in order.
        before, after: the rank's batches on the communicator that it queues behind, and that queues
            behind it.
        partners: batches that hold the other ends; None for an end that has no other.
        posted, start, done: times, as they become known.
    """

    rank: int
    communicator: Hashable
    operations: tuple[Op, ...]
    before: "Batch[Op] | None" = None
    after: "Batch[Op] | None" = None
    partners: list["Batch[Op] | None"] = field(default_factory=list)
    posted: float | None = None
    start: float | None = None
    done: float | None = None

    @property
    def sent_to_one(self) -> int:
        """Most messages to one peer, which share a link."""
        peers = [operation.peer for operation in self.operations if operation.sends]
        return max(map(peers.count, peers), default=0)


@dataclass(frozen=True)
class Work[Op: Operation]:
    """What a rank does between batches.

    Attributes:
        action: what it computes; None: it only waits.
        needs: batches that have to end before.
    """

    action: Action | None
    needs: tuple[Batch[Op], ...]


type Program[Op: Operation] = Sequence[Work[Op] | Batch[Op]]
"""What a rank does, in order."""

type Ends[Op: Operation] = list[tuple[Batch[Op], Op]]


def channels[Op: Operation](
    programs: Sequence[Program[Op]],
) -> dict[tuple[Hashable, int, int], tuple[Ends[Op], Ends[Op]]]:
    """What is sent and what is received, by (communicator, from, to).

    Messages carry no tag: the n-th that is sent is the n-th that is received.
    """
    found: dict[tuple[Hashable, int, int], tuple[Ends[Op], Ends[Op]]] = defaultdict(
        lambda: ([], [])
    )
    for batch in batches(programs):
        for operation in batch.operations:
            ways = (batch.rank, operation.peer)
            way = ways if operation.sends else ways[::-1]
            sent, received = found[batch.communicator, *way]
            (sent if operation.sends else received).append((batch, operation))
    return found


def batches[Op: Operation](programs: Sequence[Program[Op]]) -> Iterator[Batch[Op]]:
    """All batches, rank by rank."""
    return (event for program in programs for event in program if isinstance(event, Batch))


class NcclRun[Op: Operation]:
    """Programs in time: ranks and batches go on as soon as what they wait for is known.

    Args:
        programs: of every rank; times of the batches are set in place.
        costs: of the actions; a batch takes its largest message's occupancy and the latency.

    Attributes:
        clock: when each rank has done all that it could do.
        spans: when each rank computed what, in order.
        stuck: the batch that a rank waits for in vain; no rank, if all came to their end.
    """

    def __init__(self, programs: Sequence[Program[Op]], costs: StageCosts) -> None:
        self._programs, self._costs = programs, costs
        self._position = [0] * len(programs)
        self.clock = [0.0] * len(programs)
        self.spans: list[list[tuple[Action, float, float]]] = [[] for _ in programs]
        self.stuck: dict[int, Batch[Op]] = {}
        self._connect()
        self._go()

    def _connect(self) -> None:
        last: dict[tuple[int, Hashable], Batch[Op]] = {}
        for batch in batches(self._programs):
            batch.after, batch.partners = None, []
            batch.posted = batch.start = batch.done = None
            batch.before = last.get((batch.rank, batch.communicator))
            if batch.before is not None:
                batch.before.after = batch
            last[batch.rank, batch.communicator] = batch
        for sent, received in channels(self._programs).values():
            for source, target in zip_longest(sent, received, fillvalue=(None, None)):
                for (mine, _), (theirs, _) in ((source, target), (target, source)):
                    if mine is not None:
                        mine.partners.append(theirs)

    def _go(self) -> None:
        ready: deque[int] = deque(range(len(self._programs)))
        while ready:
            rank = ready.popleft()
            program = self._programs[rank]
            while self._position[rank] < len(program):
                event = program[self._position[rank]]
                if isinstance(event, Batch):
                    event.posted = self.clock[rank]
                    ready.extend(self._begin(event))
                elif not self._work(rank, event):
                    break
                self._position[rank] += 1

    def _work(self, rank: int, work: Work[Op]) -> bool:
        """Do the work, if all that it needs has an end."""
        for batch in work.needs:
            if batch.done is None:
                self.stuck[rank] = batch
                return False
            self.clock[rank] = max(self.clock[rank], batch.done)
        if work.action is not None:
            start = self.clock[rank]
            self.clock[rank] = start + self._costs.duration(work.action)
            self.spans[rank].append((work.action, start, self.clock[rank]))
        return True

    def _begin(self, batch: Batch[Op]) -> list[int]:
        """Begin what can begin, and end what can end; the ranks that can go on."""
        woken: list[int] = []
        queue = deque([batch])
        while queue:
            now = queue.popleft()
            if now.start is None and now.posted is not None:
                free = 0.0 if now.before is None else now.before.done
                if free is not None:
                    now.start = max(free, now.posted)
                    queue.extend(partner for partner in now.partners if partner is not None)
            if now.done is None and now.start is not None and self._end(now):
                if now.after is not None:
                    queue.append(now.after)
                if self.stuck.get(now.rank) is now:
                    del self.stuck[now.rank]
                    woken.append(now.rank)
        return woken

    def _end(self, batch: Batch[Op]) -> bool:
        """Let a batch end, if all its partners have begun."""
        together = [batch]
        for partner in batch.partners:
            if partner is None or partner.start is None:
                return False
            together.append(partner)
        travel = max(other.sent_to_one for other in together) * self._costs.occupancy
        starts = [other.start for other in together if other.start is not None]
        batch.done = max(starts) + travel + self._costs.latency
        return True


def nccl_spans(
    schedule: Schedule, costs: StageCosts, posting: Posting = on_pairs
) -> list[list[Span]]:
    """When each rank computes what, its messages ordered as NCCL orders them.

    Args:
        schedule: what ranks compute.
        costs: of its stages and messages.
        posting: which messages share a batch, and which a communicator.

    Raises:
        UserError: batches wait for each other in a circle: the run would hang.
    """
    run = NcclRun(_programs(schedule, posting), costs)
    if run.stuck:
        raise UserError(
            f"{schedule.name}: batches of messages wait for each other in a circle "
            f"(rank {min(run.stuck)} among them): with these communicators the run would hang"
        )
    slots = ([slot for slot, _ in schedule.actions(rank)] for rank in range(schedule.pp))
    return [
        [Span(slot, *timed) for slot, timed in zip(columns, row, strict=True)]
        for columns, row in zip(slots, run.spans, strict=True)
    ]


def _programs(schedule: Schedule, posting: Posting) -> list[Program[Operation]]:
    """What every rank does: each step's computation, then its batches."""
    programs = []
    for rank, steps in enumerate(message_steps(schedule)):
        posted: list[list[Batch[Operation]]] = []  # by step
        bringing: dict[Compute, Batch[Operation]] = {}  # result → what brings it
        for step in steps:
            posted.append([])
            for communicator, messages in posting(rank, step):
                operations = (Operation(m.peer, m.transfer.sends) for m in messages)
                batch = Batch(rank, communicator, tuple(operations))
                posted[-1].append(batch)
                received = (m.transfer for m in messages if not m.transfer.sends)
                bringing |= {_result(transfer): batch for transfer in received}
        program: list[Work[Operation] | Batch[Operation]] = []
        for step, of_step in zip(steps, posted, strict=True):
            if step.action is not None:
                needs = [n for part in step.action.parts for n in dependencies(schedule, part)]
                program.append(
                    Work(step.action, tuple(bringing[n] for n in needs if n in bringing))
                )
            program += of_step
        programs.append(program)
    return programs


def _result(received: Transfer) -> Compute:
    """What arrives with a message."""
    sent = received.partner
    return Compute(sent.stage, sent.kind[-1], sent.micro_batch)
