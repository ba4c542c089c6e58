"""All ranks' messages of a pipeline against each other, as the product's own code posts them.

Each rank in turn takes its step (`recorded_step`). What was written down is then held together
under NCCL's rules (`schedules.nccl`): who waits for whom, what each end of a message takes it for,
and how long all of it takes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise, zip_longest

import torch

from dsv3_plugin.rehearsal.recorded_group import Posted
from dsv3_plugin.rehearsal.recorded_step import RankRecord, recorded_steps
from dsv3_plugin.rehearsal.report import OF_OURS, Finding, Messages
from dsv3_plugin.schedules.actions import Action, Schedule, dependencies, result
from dsv3_plugin.schedules.costs import StageCosts
from dsv3_plugin.schedules.nccl import NcclRun, Program, batches, channels
from dsv3_plugin.schedules.simulate import simulate

MOST_QUEUEING = 0.01
"""Of the ideal, by which messages that take no time themselves may lengthen a step: with a
communicator for every pair of ranks no schedule comes near."""

_WAY_OUT = (
    "another pipeline.schedule, or pipeline.executor=upstream, whose messages are Megatron's; "
    + OF_OURS
)


def rehearse_messages(
    schedule: Schedule, costs: StageCosts, shape: tuple[int, int, int], dtype: torch.dtype
) -> Messages:
    """Have every rank of the pipeline post the messages of a step, and hold them together.

    The process has to be a CPU host, and of no world.

    Args:
        schedule: of the step.
        costs: of its stages and messages.
        shape, dtype: of the messages between stages, `[s, b, h]`.
    """
    return held_together(schedule, costs, recorded_steps(schedule, shape, dtype))


def held_together(schedule: Schedule, costs: StageCosts, records: Sequence[RankRecord]) -> Messages:
    """What ranks recorded, held together."""
    starts = [record.start for record in records]
    programs = [record.program for record in records]
    findings = list(_failures(records))
    if not findings:  # otherwise the others' messages miss their ends for that reason
        findings += _unlike_ends(schedule, records, starts)
        findings += _unlike_ends(schedule, records, programs)
        findings += _hangs(NcclRun(starts, costs), "making the groups of neighbours")
    run = NcclRun(programs, costs)
    if not findings:
        findings += _hangs(run, "the step")
    makespan, waiting = None, tuple(map(_waiting, run.spans))
    if not findings:
        makespan = max(run.clock)
        findings += _queueing(schedule, costs, programs)
    pairs = [{batch.communicator for batch in batches([program])} for program in programs]
    posted = list(batches(programs))
    return Messages(
        findings=tuple(findings),
        communicators=max(map(len, pairs)),
        messages=sum(operation.sends for batch in posted for operation in batch.operations),
        batches=len(posted),
        makespan=makespan,
        ideal=simulate(schedule, costs).makespan,
        waiting=waiting,
    )


def _failures(records: Sequence[RankRecord]) -> Iterator[Finding]:
    for rank, record in enumerate(records):
        if record.failed is not None:
            yield Finding(f"pipeline rank {rank} stops in its step: {record.failed}", _WAY_OUT)


def _unlike_ends(
    schedule: Schedule, records: Sequence[RankRecord], programs: Sequence[Program[Posted]]
) -> Iterator[Finding]:
    """Messages that have one end, or ends that differ: the first of each way."""
    for (_, sender, receiver), (sent, received) in channels(programs).items():
        ends = zip_longest(sent, received, fillvalue=(None, None))
        for number, ((_, source), (_, target)) in enumerate(ends, 1):
            which = f"message {number} from pipeline rank {sender} to {receiver}"
            if source is None or target is None:
                missing = "sent, and never received" if target is None else "waited for, never sent"
                yield Finding(
                    f"{which} is {missing}, on the communicator it is posted on", _WAY_OUT
                )
                break
            if (source.shape, source.dtype) != (target.shape, target.dtype):
                yield Finding(
                    f"{which} is {list(source.shape)} in {source.dtype} where it is sent, and "
                    f"{list(target.shape)} in {target.dtype} where it is received",
                    _WAY_OUT,
                )
                break
            made = records[sender].made.get(source.tensor)
            used = records[receiver].used.get(target.tensor)
            if made is None and used is None:  # a greeting
                continue
            if made is None or used is None or result(made) not in dependencies(schedule, used):
                yield Finding(
                    f"{which} is what {made or 'nothing'} made, and {used or 'nothing'} is "
                    f"computed from it",
                    _WAY_OUT,
                )
                break


def _hangs(run: NcclRun[Posted], what: str) -> Iterator[Finding]:
    """The first batch of all that is waited for in vain."""
    if run.stuck:
        rank = min(run.stuck)
        batch = run.stuck[rank]
        stuck = ", ".join(map(str, sorted(run.stuck)))
        peers = ", ".join(map(str, sorted({operation.peer for operation in batch.operations})))
        yield Finding(
            f"{what} would hang: pipeline ranks {stuck} wait for each other, rank {rank} for "
            f"what it exchanges with rank {peers}",
            _WAY_OUT,
        )


def _queueing(
    schedule: Schedule, costs: StageCosts, programs: Sequence[Program[Posted]]
) -> Iterator[Finding]:
    """Whether messages wait for each other where nothing but their order makes them."""
    timeless = replace(costs, latency=0.0, occupancy=0.0)
    ideal = simulate(schedule, timeless).makespan
    longer = max(NcclRun(programs, timeless).clock) / ideal - 1
    if longer > MOST_QUEUEING:
        yield Finding(
            f"messages between stages queue behind others that nobody waits for: a step takes "
            f"{100 * longer:.1f} % longer than its computations and what they need of each other",
            "a process group for every two neighbours of the pipeline, and no more in a batch than "
            "what the two exchange at one time",
        )


def _waiting(row: Sequence[tuple[Action, float, float]]) -> float:
    return sum(after[1] - before[2] for before, after in pairwise(row))
