"""A rank that dies or falls silent in mid-step: the other says which one, where, and in time."""

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv3_plugin.schedules.dualpipe import dualpipe
from dsv3_plugin.schedules.dualpipe_v import dualpipe_v
from tests.gloo_ranks import run_ranks
from tests.pipeline.executed import MICRO, SEQ, batches, chunks_of
from tests.staged_model import forward_step

TIMEOUT_S = 3.0
SCHEDULES = {"dualpipe_v": dualpipe_v(2, 5), "dualpipe": dualpipe(2, 6)}


def _survive(rank: int, name: str, where: str, number: signal.Signals) -> tuple[str, float]:
    """Take two steps; rank 1 meets its end in the second. What rank 0 says, and after how long."""
    from dsv3_plugin.distributed.failures import LostRank
    from dsv3_plugin.pipeline import executor
    from dsv3_plugin.pipeline.replicas import Replicas

    schedule = SCHEDULES[name]
    count = schedule.num_micro_batches
    wrapped = chunks_of(schedule)
    runner = executor.Executor(lambda _: schedule, TIMEOUT_S)
    processes: list[Any] = [None, None]
    torch.distributed.all_gather_object(processes, os.getpid())
    began = 0

    def forward(*arguments: Any) -> Any:
        nonlocal began
        began += 1
        if where == "forward" and began > 2 * count + 3:
            end()
        return forward_step(*arguments)

    def end() -> None:
        if rank == 1:
            os.kill(os.getpid(), number)

    def step() -> None:
        runner(
            forward_step_func=forward,
            model=wrapped,
            seq_length=SEQ,
            micro_batch_size=MICRO,
            data_iterator=[batches(count) for _ in wrapped],
            num_microbatches=count,
        )

    if name == "dualpipe":  # each rank computes half of the micro-batches of each copy
        began = count
    step()
    if where == "losses":
        original, executor.Form.pack = executor.Form.pack, lambda *_: (end(), original(*_))[1]
    if where == "gradients":
        add, Replicas.add_gradients = Replicas.add_gradients, lambda *_: (end(), add(*_))[1]
    start = time.monotonic()
    try:
        step()
    except LostRank as lost:
        with contextlib.suppress(ProcessLookupError):
            os.kill(processes[1], signal.SIGKILL)  # a stopped one would answer nobody
        return str(lost), time.monotonic() - start
    return "nothing", time.monotonic() - start


@pytest.mark.parametrize(
    ("name", "where", "number", "during"),
    [
        ("dualpipe_v", "forward", signal.SIGKILL, ""),
        ("dualpipe_v", "forward", signal.SIGSTOP, ""),
        ("dualpipe_v", "losses", signal.SIGSTOP, "the sharing of the losses"),
        ("dualpipe", "gradients", signal.SIGKILL, "the sum of the two copies' gradients"),
    ],
)
def test_the_other_rank_names_it_within_the_timeout(
    tmp_path: Path, name: str, where: str, number: signal.Signals, during: str
) -> None:
    sentence, seconds = run_ranks(
        2, _survive, name, where, number, scratch=tmp_path, timeout_s=60, missing=(1,)
    )[0]
    assert sentence.startswith("rank 0 lost rank 1 during "), sentence
    assert sentence.endswith(": it died or gave no sign in time; see the end of that rank's log")
    doing = sentence.removeprefix("rank 0 lost rank 1 during ").partition(":")[0]
    if during:
        assert doing == during
    else:
        actions = {str(part) for _, _, part in SCHEDULES[name].parts()}
        assert doing in actions or "RECV" in doing or "SEND" in doing, doing
    # What the second step computes takes its time, too; the world's own timeout is 60 s.
    assert seconds < TIMEOUT_S + 10
