"""All ranks' messages as the executor posts them; and what is said where a fault is put back."""

import dataclasses

import pytest
import torch
import torch.distributed as dist

from dsv3_plugin.pipeline.executor import Executor
from dsv3_plugin.pipeline.neighbours import Neighbours
from dsv3_plugin.pipeline.p2p import StageMessages
from dsv3_plugin.rehearsal.messages import rehearse_messages
from dsv3_plugin.schedules.costs import Costs, even_stages
from dsv3_plugin.schedules.messages import Step
from dsv3_plugin.schedules.registry import SCHEDULES
from dsv3_plugin.schedules.simulate import simulate
from dsv3_plugin.upstream import cpu_host

cpu_host.enable()

KINDS = [kind for kind in SCHEDULES.values() if not kind.searched]
SHAPE = (4096, 1, 7168)
ONCE = Costs(occupancy=0.02)


def rehearsed(schedule, costs=ONCE):
    return rehearse_messages(schedule, even_stages(schedule, costs), SHAPE, torch.bfloat16)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_step_takes_what_the_simulation_of_the_executor_says(kind):
    """The one is made of what ranks post, the other of the schedule."""
    for schedule in kind.forms(4, max(kind.least_micro_batches(4), 4) + 2):
        messages = rehearsed(schedule)
        stages = even_stages(schedule, ONCE)
        assert messages.findings == ()
        assert messages.makespan == pytest.approx(simulate(schedule, stages, "nccl").makespan)
        assert messages.ideal == pytest.approx(simulate(schedule, stages).makespan)
        assert messages.communicators == 2
        assert all(waiting >= 0 for waiting in messages.waiting)


def test_the_messages_of_sixteen_ranks():
    schedule = SCHEDULES["dualpipe_v"].schedule(16, 40)
    messages = rehearsed(schedule, Costs())
    assert messages.findings == ()
    assert (
        messages.makespan
        == messages.ideal
        == simulate(schedule, even_stages(schedule, Costs())).makespan
    )
    # Both ways between 32 stages, two of which lie on one rank.
    assert messages.messages == 40 * 2 * 30


def test_one_group_for_the_pipeline(monkeypatch):
    monkeypatch.setattr(Neighbours, "group", lambda self, peer: self.pipeline)
    (finding,) = rehearsed(SCHEDULES["dualpipe_v"].schedule(8, 20)).findings
    assert "queue behind others that nobody waits for" in finding.sentence
    assert "a process group for every two neighbours" in finding.way_out


def test_all_that_a_step_posts_in_one_batch(monkeypatch):
    """On the group of the pipeline, as it once was: as the simulation of that says."""

    def post(self, batch):
        operations = []
        for message in batch:
            transfer = message.transfer
            if transfer.sends:
                key = (transfer.kind[-1], transfer.partner.stage, transfer.micro_batch)
                how, tensor = dist.isend, self._outgoing.pop(key)
            else:
                how, tensor = dist.irecv, torch.empty(self._shape, dtype=self._dtype)
            peer = self._neighbours.ranks[message.peer]
            operations.append(dist.P2POp(how, tensor, peer, self._neighbours.pipeline))
        (work,) = dist.batch_isend_irecv(operations)
        for message, operation in zip(batch, operations, strict=True):
            transfer = message.transfer
            if not transfer.sends:
                key = (transfer.kind[-1], transfer.stage, transfer.micro_batch)
                self._expected[key] = (work, operation.tensor)

    def in_one_batch(rank, steps):
        return [Step(step.action, (step.messages,) if step.messages else ()) for step in steps]

    _change_steps(monkeypatch, in_one_batch)
    monkeypatch.setattr(StageMessages, "post", post)
    schedule = SCHEDULES["dualpipe_v"].schedule(8, 20)
    messages = rehearsed(schedule)
    stages = even_stages(schedule, ONCE)
    assert messages.makespan == pytest.approx(simulate(schedule, stages, "nccl-one").makespan)
    (finding,) = messages.findings
    assert "queue" in finding.sentence


def _change_steps(monkeypatch, change):
    """Let ranks take other steps than their schedule's."""
    plan = Executor.plan

    def changed(self, *args, **kwargs):
        placement, ranks = plan(self, *args, **kwargs)
        return placement, [change(rank, list(steps)) for rank, steps in enumerate(ranks)]

    monkeypatch.setattr(Executor, "plan", changed)


def test_a_receive_that_is_forgotten(monkeypatch):
    def without_one(rank, steps):
        if rank != 1:
            return steps
        at = next(i for i, step in enumerate(steps) if "RECV_B" in str(step))
        kept = (
            tuple(m for m in batch if m.transfer.kind != "RECV_B") for batch in steps[at].batches
        )
        steps[at] = dataclasses.replace(steps[at], batches=tuple(filter(None, kept)))
        return steps

    _change_steps(monkeypatch, without_one)
    (finding,) = rehearsed(SCHEDULES["1f1b"].schedule(4, 6)).findings
    assert finding.sentence == (
        "pipeline rank 1 stops in its step: there is no message for 1B0 where it is wanted"
    )
    assert finding.stops


def test_a_message_that_nobody_receives(monkeypatch):
    def without_sends_up(rank, steps):
        return [
            Step(step.action, tuple(b for b in step.batches if b[0].transfer.kind != "SEND_B"))
            if rank == 1 else step
            for step in steps
        ]  # fmt: skip

    _change_steps(monkeypatch, without_sends_up)
    found = [finding.sentence for finding in rehearsed(SCHEDULES["zb1p"].schedule(4, 6)).findings]
    assert any(
        "from pipeline rank 1 to 0 is waited for, never sent" in sentence for sentence in found
    )


def test_batches_of_two_ranks_in_unlike_order(monkeypatch):
    """Rank 0 posts what it receives before what it sends; on NCCL the one waits for the other."""

    def turned(rank, steps):
        return [
            Step(step.action, step.batches[::-1] if rank == 0 else step.batches) for step in steps
        ]

    _change_steps(monkeypatch, turned)
    found = [finding.sentence for finding in rehearsed(SCHEDULES["zb1p"].schedule(2, 6)).findings]
    assert found == [
        "the step would hang: pipeline ranks 0, 1 wait for each other, rank 0 for what it "
        "exchanges with rank 1"
    ]


def test_messages_taken_for_each_other(monkeypatch):
    """Rank 1 posts its first two receives at once, in the wrong order: nothing hangs."""

    def crossed(rank, steps):
        if rank == 1:
            first, second, *rest = steps
            both = (*second.batches, *first.batches)
            return [Step(first.action, both), Step(second.action, ()), *rest]
        return steps

    _change_steps(monkeypatch, crossed)
    found = [finding.sentence for finding in rehearsed(SCHEDULES["zb1p"].schedule(2, 6)).findings]
    assert found == [
        "message 1 from pipeline rank 0 to 1 is what 0F0 made, and 1F1 is computed from it"
    ]


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [
        ("_shape", (2048, 1, 7168), "is [4096, 1, 7168] in bfloat16 where it is sent, and "
         "[2048, 1, 7168] in bfloat16 where it is received"),
        ("_dtype", torch.float32, "in float32 where it is received"),
    ],
)  # fmt: skip
def test_ends_of_unlike_form(monkeypatch, attribute, value, words):
    made = StageMessages.__init__

    def wrongly(self, neighbours, *args):
        made(self, neighbours, *args)
        if neighbours.pipeline.rank() == 2:
            setattr(self, attribute, value)

    monkeypatch.setattr(StageMessages, "__init__", wrongly)
    findings = rehearsed(SCHEDULES["1f1b"].schedule(4, 6)).findings
    assert "to 2 is" in findings[0].sentence
    assert words in findings[0].sentence


def test_neighbours_that_do_not_find_their_group(monkeypatch):
    """torch names a group by how many were made before: ranks that differ in it never meet."""
    import dsv3_plugin.pipeline.neighbours as neighbours

    def unlike(pipeline):
        torch.distributed.distributed_c10d._world.group_count += pipeline.rank()

    monkeypatch.setattr(neighbours, "_count_groups_alike", unlike)
    findings = rehearsed(SCHEDULES["1f1b"].schedule(4, 6)).findings
    assert "never" in findings[0].sentence
