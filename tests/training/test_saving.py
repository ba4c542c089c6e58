"""Which checkpoints are written, and whose queue their writers answer by."""

import queue
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dsv3_plugin.training import around_upstream
from dsv3_plugin.training.run import Run
from dsv3_plugin.training.saving import get_write_results_queue
from tests.gloo_ranks import run_ranks
from tests.training import trainer_ranks

# Three steps of 8 sequences of 64 tokens, then 16.
GROWING = "curves.batch_size=[{constant: 8, until: 1536}, {constant: 16}]"


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("iter_*"))


@pytest.mark.parametrize(
    ("more", "written"),
    [
        # The batch grows after step 3, and nobody asks for a checkpoint then.
        (["training.steps=4"], ["iter_0000004"]),
        # It has grown by the end of the run, without a step that would have taken note of it.
        (["training.steps=4", "megatron_args.iterations-to-skip=[4]"], ["iter_0000004"]),
    ],
    ids=["unasked", "the end"],
)
def test_what_is_asked_for_is_saved_however_the_batch_grows(recipe, tmp_path, more, written):
    overrides = [
        f"directory={tmp_path}/run", "parallel.processes=1", "parallel.expert=1", GROWING,
        "checkpoint.interval=100", *more,
    ]  # fmt: skip
    run_ranks(1, trainer_ranks.train, recipe, overrides, scratch=tmp_path)
    assert saved(tmp_path / "run") == written


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
