"""A rank that dies or falls silent in mid-step: the other says which one, where, and in time."""

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from dsv3_plugin.distributed.failures import is_loss, naming_lost
from dsv3_plugin.errors import UserError
from dsv3_plugin.schedules.dualpipe import dualpipe
from dsv3_plugin.schedules.dualpipe_v import dualpipe_v
from tests.gloo_ranks import run_ranks
from tests.pipeline.executed import MICRO, SEQ, batches, chunks_of
from tests.staged_model import forward_step

TIMEOUT_S = 3.0
ELSE_S = 600.0
"""What a rank would wait by the other timeout: far longer than any machine takes for this one."""
SCHEDULES = {"dualpipe_v": dualpipe_v(2, 5), "dualpipe": dualpipe(2, 6)}


def _survive(rank: int, name: str, where: str, number: signal.Signals) -> tuple[str, float]:
    """Take two steps; rank 1 meets its end in the second. What rank 0 says, and after how long."""
    from dsv3_plugin.distributed.failures import LostRank, set_timeout
    from dsv3_plugin.pipeline import executor
    from dsv3_plugin.pipeline.replicas import Replicas

    schedule = SCHEDULES[name]
    count = schedule.num_micro_batches
    wrapped = chunks_of(schedule)
    runner = executor.Executor(lambda _: schedule)
    set_timeout(TIMEOUT_S)
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


def _raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "loss"),
    [
        (RuntimeError("[/pair.cc:1] Connection closed by peer [127.0.0.1]:4"), True),
        (RuntimeError("Timed out waiting 3000ms for recv operation to complete"), True),
        (RuntimeError("Application timeout caused pair closure"), True),
        (torch.distributed.DistStoreError("wait for 1 key failed"), True),
        (torch.distributed.DistNetworkError("failed to recv, got 0 bytes"), True),
        # As torch and upstream wrap what they call.
        (_raised(ValueError("cannot save"), RuntimeError("Broken pipe")), True),
        (CheckpointException("save", {1: (RuntimeError("Connection reset by peer"), None)}), True),
        (CheckpointException("save", {1: (OSError("No space left on device"), None)}), False),
        (RuntimeError("CUDA out of memory"), False),
        (OSError("[Errno 110] Connection timed out"), False),  # of a disk somewhere else
        (_raised(SystemExit(0), RuntimeError("Connection closed by peer")), False),
    ],
    ids=range(11),
)
def test_what_fails_for_want_of_a_rank_is_told_from_the_rest(
    error: BaseException, loss: bool
) -> None:
    assert is_loss(error) == loss


def test_what_somebody_has_a_sentence_for_keeps_it() -> None:
    with pytest.raises(RuntimeError) as kept, naming_lost("an exchange", [0, 1]):
        raise _raised(RuntimeError("Connection closed"), UserError("no space left"))
    assert str(kept.value) == "Connection closed"


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
        2, _survive, name, where, number, scratch=tmp_path, timeout_s=ELSE_S, missing=(1,)
    )[0]
    assert sentence.startswith("rank 0 lost rank 1 during "), sentence
    assert sentence.endswith(": it died or gave no sign in time; see the end of that rank's log")
    doing = sentence.removeprefix("rank 0 lost rank 1 during ").partition(":")[0]
    if during:
        assert doing == during
    else:
        actions = {str(part) for _, _, part in SCHEDULES[name].parts()}
        assert doing in actions or "RECV" in doing or "SEND" in doing, doing
    assert seconds < ELSE_S
