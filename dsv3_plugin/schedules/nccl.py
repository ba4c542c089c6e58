"""A schedule in time under NCCL's rules of ordering, which `simulate` knows nothing of.

One `batch_isend_irecv` is one kernel on the stream of its communicator. It begins when the rank's
computation before it is done and the batch before it on that communicator has ended, and it ends
when every partner's has begun: what is posted later queues behind it, be it for another rank. So
how many communicators there are decides what waits for what. A computation waits for the batches
that bring what it needs.
"""

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from dsv3_plugin.errors import UserError
from dsv3_plugin.schedules.actions import Compute, Schedule, dependencies
from dsv3_plugin.schedules.costs import StageCosts
from dsv3_plugin.schedules.messages import Message, Step, message_steps
from dsv3_plugin.schedules.simulate import Span, Timeline, peak_activations

Communicator = Callable[[int, Message], Hashable]
"""(rank, message) → which of the rank's communicators carries it; both ends must agree."""


def one(rank: int, message: Message) -> Hashable:
    """All of a pipeline's messages on one communicator."""
    return 0


def per_pair(rank: int, message: Message) -> Hashable:
    """A communicator for every two ranks that send to each other."""
    return frozenset((rank, message.peer))


@dataclass
class _Batch:
    """Messages of a rank that are posted at once on one communicator.

    Attributes:
        rank: whose.
        messages: what it sends and receives.
        before: the rank's batch before it on the communicator.
        partners: batches that hold the other ends of its messages.
        after: the batch that queues behind it.
        posted, start, done: times, as they become known.
    """

    rank: int
    messages: tuple[Message, ...]
    before: "_Batch | None" = None
    partners: list["_Batch"] = field(default_factory=list)
    after: "_Batch | None" = None
    posted: float | None = None
    start: float | None = None
    done: float | None = None

    @property
    def sent_to_one(self) -> int:
        """Most messages to one peer, which share a link."""
        peers = [message.peer for message in self.messages if message.transfer.sends]
        return max(map(peers.count, peers), default=0)


def simulate_nccl(
    schedule: Schedule, costs: StageCosts, communicator: Communicator = per_pair
) -> Timeline:
    """The schedule in time, its messages ordered as NCCL orders them.

    Args:
        schedule: what ranks compute.
        costs: of its stages; a batch takes its largest message's occupancy and the latency.
        communicator: which messages share one.

    Raises:
        UserError: batches wait for each other in a circle: the run would hang.
    """
    run = _Run(schedule, costs, communicator)
    run.go()
    return Timeline(schedule, tuple(map(tuple, run.spans)), peak_activations(schedule, costs))


class _Run:
    """A simulation under way: ranks and batches go on as soon as what they wait for is known."""

    def __init__(self, schedule: Schedule, costs: StageCosts, communicator: Communicator) -> None:
        self.schedule, self.costs = schedule, costs
        self.steps = message_steps(schedule)
        self.spans: list[list[Span]] = [[] for _ in range(schedule.pp)]
        self.slots = [[slot for slot, _ in schedule.actions(rank)] for rank in range(schedule.pp)]
        self.position = [0] * schedule.pp
        self.clock = [0.0] * schedule.pp
        self.batches: list[list[list[_Batch]]] = []  # by rank and step
        self.bringing: dict[tuple[Compute, int], _Batch] = {}  # (result, rank) → what brings it
        self.waiting: dict[int, _Batch] = {}  # rank → the batch it waits for
        self._lay_out(communicator)

    def _lay_out(self, communicator: Communicator) -> None:
        last: dict[tuple[int, Hashable], _Batch] = {}
        holder: dict[object, _Batch] = {}  # transfer → the batch that has this end of it
        for rank, steps in enumerate(self.steps):
            self.batches.append([])
            for step in steps:
                together: dict[Hashable, list[Message]] = {}
                for message in step.messages:
                    together.setdefault(communicator(rank, message), []).append(message)
                made = []
                for key, messages in together.items():
                    batch = _Batch(rank, tuple(messages), last.get((rank, key)))
                    if batch.before is not None:
                        batch.before.after = batch
                    last[rank, key] = batch
                    made.append(batch)
                    for message in messages:
                        holder[message.transfer] = batch
                self.batches[rank].append(made)
        for batch in {id(batch): batch for batch in holder.values()}.values():
            for message in batch.messages:
                transfer = message.transfer
                batch.partners.append(holder[transfer.partner])
                if not transfer.sends:
                    sent = transfer.partner
                    made_by = Compute(sent.stage, sent.kind[-1], sent.micro_batch)
                    self.bringing[made_by, batch.rank] = batch

    def go(self) -> None:
        """Run to the end."""
        ready: deque[int] = deque(range(self.schedule.pp))
        while ready:
            rank = ready.popleft()
            while self.position[rank] < len(self.steps[rank]):
                step = self.steps[rank][self.position[rank]]
                blocked_by = self._compute(rank, step)
                if blocked_by is not None:
                    self.waiting[rank] = blocked_by
                    break
                for batch in self.batches[rank][self.position[rank]]:
                    batch.posted = self.clock[rank]
                    ready.extend(self._begin(batch))
                self.position[rank] += 1
        if any(at < len(steps) for at, steps in zip(self.position, self.steps, strict=True)):
            stuck = min(self.waiting)
            raise UserError(
                f"{self.schedule.name}: batches of messages wait for each other in a circle "
                f"(rank {stuck} among them): with these communicators the run would hang"
            )

    def _compute(self, rank: int, step: Step) -> _Batch | None:
        """Compute the step's action; the batch that it waits for, if that has no end yet."""
        if step.action is None:
            return None
        start = self.clock[rank]
        for part in step.action.parts:
            for need in dependencies(self.schedule, part):
                batch = self.bringing.get((need, rank))
                if batch is None:  # of its own
                    continue
                if batch.done is None:
                    return batch
                start = max(start, batch.done)
        end = self.clock[rank] = start + self.costs.duration(step.action)
        slot = self.slots[rank][len(self.spans[rank])]
        self.spans[rank].append(Span(slot, step.action, start, end))
        return None

    def _begin(self, batch: _Batch) -> list[int]:
        """Begin what can begin, and end what can end; the ranks that can go on."""
        woken: list[int] = []
        queue = deque([batch])
        while queue:
            now = queue.popleft()
            if now.start is None and now.posted is not None:
                free = 0.0 if now.before is None else now.before.done
                if free is not None:
                    now.start = max(free, now.posted)
                    queue.extend(now.partners)
            starts = [partner.start for partner in (now, *now.partners)]
            if now.done is None and None not in starts:
                both = max(now.sent_to_one, *(partner.sent_to_one for partner in now.partners))
                travel = both * self.costs.occupancy + self.costs.latency
                now.done = max(start for start in starts if start is not None) + travel
                if now.after is not None:
                    queue.append(now.after)
                if self.waiting.get(now.rank) is now:
                    del self.waiting[now.rank]
                    woken.append(now.rank)
        return woken
