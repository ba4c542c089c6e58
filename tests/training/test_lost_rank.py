"""A rank that is gone is named wherever the others notice it, not inside of steps alone."""

import contextlib
import dataclasses
import os
import signal
import time

import pytest
import torch

from tests.gloo_ranks import run_ranks
from tests.training import trainer_ranks
from tests.training.test_hooks import with_hooks

TIMEOUT_S = 3
ELSE_S = 600.0
"""What a rank would wait by the other timeout: far longer than any machine takes for this one."""


def train_until_rank_1_goes(rank, recipe, overrides, where, number):
    """What rank 0 says, and how long after the last thing that it did alone."""
    from dsv3_plugin.errors import UserError
    from dsv3_plugin.training.hooks import Hook

    processes = [None, None]
    torch.distributed.all_gather_object(processes, os.getpid())
    went = time.monotonic()

    def go(now):
        nonlocal went
        if now == where and rank == 1:
            os.kill(os.getpid(), number)
        went = time.monotonic()

    class Goes(Hook):
        def on_log(self, step):  # what comes next is an exchange among all ranks
            if step.iteration == 2:
                go("between steps")

        def wants_save(self, iteration):
            if iteration == 2:
                go("save")
            return True

    def stage(run):
        plain = with_hooks(Goes())(run)

        def forward_step(samples, model):
            if not model.training and run.step and run.step.iteration == 2:
                go("evaluation")
            return plain.forward_step(samples, model)

        return dataclasses.replace(plain, forward_step=forward_step)

    try:
        trainer_ranks.train(rank, recipe, overrides, stage)
    except UserError as error:
        with contextlib.suppress(ProcessLookupError):
            os.kill(processes[1], signal.SIGKILL)  # a stopped one would answer nobody
        return str(error), time.monotonic() - went
    return "went through", 0.0


@pytest.mark.parametrize(
    ("where", "number", "place"),
    [
        ("between steps", signal.SIGKILL, "step 2"),
        ("between steps", signal.SIGSTOP, "step 2"),
        ("evaluation", signal.SIGKILL, "the evaluation after step 2"),
        ("save", signal.SIGKILL, "the checkpoint of step 2"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_rank_lost_anywhere_is_named_in_time(recipe, tmp_path, where, number, place):
    overrides = [
        f"directory={tmp_path}/run", "checkpoint.interval=1", "training.eval_interval=2",
        f"pipeline.timeout={TIMEOUT_S}", f"parallel.timeout_minutes={ELSE_S / 60}",
    ]  # fmt: skip
    (sentence, seconds), _ = run_ranks(
        *(2, train_until_rank_1_goes, recipe, overrides, where, number),
        scratch=tmp_path,
        missing=(1,),
    )
    assert sentence.startswith(f"{place}: rank 0 lost rank 1 during "), sentence
    assert "; the checkpoint of step 1 is whole, the same command goes on from it" in sentence
    assert seconds < ELSE_S
