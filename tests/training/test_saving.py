"""Whose queue the writers of a checkpoint answer by."""

import queue
from types import SimpleNamespace
from typing import Any

import pytest

from dsv3_plugin.training import around_upstream
from dsv3_plugin.training.run import Run
from dsv3_plugin.training.saving import get_write_results_queue


def queue_now() -> Any:
    return get_write_results_queue(lambda: "between processes")()


@pytest.mark.parametrize(
    ("asynchronous", "kind"), [(False, queue.Queue), (True, str)], ids=["threads", "a process"]
)
def test_a_run_has_a_queue_of_its_own_while_it_saves_with_threads(monkeypatch, asynchronous, kind):
    seen = []
    monkeypatch.setattr(
        around_upstream, "get_args", lambda: SimpleNamespace(async_save=asynchronous)
    )
    save = around_upstream.save_checkpoint(lambda iteration: seen.append(queue_now()))
    run = Run(recipe=None, folder=None, machine=None)
    assert queue_now() == "between processes"
    with run.in_charge():
        assert queue_now() == "between processes"  # whoever asks dist_checkpointing meanwhile
        save(3)
        assert queue_now() == "between processes"
    assert isinstance(seen[0], kind)


def test_a_save_that_fails_leaves_the_queue_as_it_was(monkeypatch):
    monkeypatch.setattr(around_upstream, "get_args", lambda: SimpleNamespace(async_save=False))

    def fail(iteration: int) -> None:
        raise KeyboardInterrupt

    with Run(recipe=None, folder=None, machine=None).in_charge():
        with pytest.raises(KeyboardInterrupt):
            around_upstream.save_checkpoint(fail)(3)
        assert queue_now() == "between processes"
