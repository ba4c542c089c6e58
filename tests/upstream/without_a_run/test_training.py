"""What training/ replaces."""

from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from megatron.core.dist_checkpointing.strategies import async_utils, filesystem_async
from megatron.training import training

import dsv3_plugin
from dsv3_plugin.training.background_writer import init_persistent_async_worker
from tests.upstream.without_a_run.covering import both, of


@of("megatron.training.training:train_step")
@pytest.mark.parametrize("given", [{}, {"pg_collection": "groups", "p2p_communicator": "p2p"}])
def test_a_step_hands_its_schedule_what_it_was_given(given, monkeypatch):
    class Settings(SimpleNamespace):
        def __getattr__(self, name: str) -> None:
            return None

    class Rerun:
        once = iter([True, False])

        def should_run_forward_backward(self, data: Any) -> bool:
            return next(self.once)

        def should_checkpoint_and_exit(self) -> tuple[bool, bool, int]:
            return False, True, 7

    Rerun.once = iter([True, False])
    dsv3_plugin.register()
    settings = Settings(seq_length=8, micro_batch_size=2)
    for name, value in {
        "get_args": settings,
        "get_timers": mock.MagicMock(),
        "get_num_microbatches": 3,
        "get_rerun_state_machine": Rerun(),
    }.items():
        monkeypatch.setattr(training, name, lambda value=value: value)
    schedule, step = mock.Mock(return_value=[]), mock.Mock()
    chunk = SimpleNamespace(zero_grad_buffer=mock.Mock())
    answer = training.train_step(
        forward_step_func=step,
        data_iterator=None,
        model=[chunk],
        optimizer=mock.Mock(),
        opt_param_scheduler=None,
        config=SimpleNamespace(),
        forward_backward_func=schedule,
        iteration=0,
        **given,
    )
    asked = schedule.call_args.kwargs
    assert asked["forward_step_func"] is step
    assert (asked["num_microbatches"], asked["seq_length"], asked["micro_batch_size"]) == (3, 8, 2)
    assert asked["pg_collection"] == given.get("pg_collection")
    assert asked["p2p_communicator"] == given.get("p2p_communicator")
    assert answer[1:5] == (True, False, True, 7)


@of("megatron.training.training:OptimizerParamScheduler")
@pytest.mark.parametrize("style", ["constant", "linear", "cosine", "inverse-square-root", "WSD"])
def test_the_learning_rate_follows_upstreams_styles(style):
    def rates() -> list[float]:
        def scheduler(optimizer: torch.optim.Optimizer) -> Any:
            return training.OptimizerParamScheduler(
                optimizer,
                init_lr=0.0,
                max_lr=0.1,
                min_lr=0.01,
                lr_warmup_steps=4,
                lr_decay_steps=20,
                lr_decay_style=style,
                start_wd=0.1,
                end_wd=0.1,
                wd_incr_steps=20,
                wd_incr_style="constant",
                wsd_decay_steps=6,
                lr_wsd_decay_style="linear",
            )

        weight = torch.nn.Parameter(torch.ones(1))
        group = {"params": [weight], "wd_mult": 1.0, "lr_mult": 1.0, "max_lr": 0.1, "min_lr": 0.01}
        optimizer = torch.optim.SGD([group], lr=1.0)
        ours, seen = scheduler(optimizer), []
        for _ in range(12):
            ours.step(2)
            seen.append(optimizer.param_groups[0]["lr"])
        again = scheduler(optimizer)
        again.load_state_dict(ours.state_dict())
        return [*seen, optimizer.param_groups[0]["lr"], again.num_steps]

    before, after = both(rates)
    assert after == before


@of(
    "megatron.core.dist_checkpointing.strategies.async_utils:AsyncCallsQueue._get_async_caller",
    "megatron.training.initialize:init_persistent_async_worker",
)
def test_who_saves_without_a_run_has_upstreams_writer():
    def callers() -> list[type]:
        queues = [async_utils.AsyncCallsQueue(persistent) for persistent in (False, True)]
        return [type(calls._get_async_caller()) for calls in queues]

    before, after = both(callers)
    assert before == after
    worker = mock.Mock(return_value="a process")
    assert init_persistent_async_worker(worker)(0, mp_mode="forkserver") == "a process"
    worker.assert_called_once_with(0, mp_mode="forkserver")


@of("megatron.core.dist_checkpointing.strategies.filesystem_async:get_write_results_queue")
def test_a_queue_that_no_run_asks_for_reaches_other_processes(monkeypatch):
    asked = mock.Mock(return_value="between processes")
    monkeypatch.setattr(filesystem_async, "get_write_results_queue", asked)
    dsv3_plugin.register()
    assert filesystem_async.get_write_results_queue("fork") == "between processes"
    asked.assert_called_once_with("fork")
    assert filesystem_async.get_write_results_queue(mp_mode="spawn") == "between processes"
