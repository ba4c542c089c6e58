"""Which checkpoints are written, and whose queue their writers answer by."""

import os
import queue
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dsv3_plugin.checkpoint.tracker import is_complete
from dsv3_plugin.training import around_upstream
from dsv3_plugin.training.background_writer import get_write_results_queue, own_copies
from dsv3_plugin.training.run import Run
from tests.gloo_ranks import run_ranks
from tests.small_runs import numbers
from tests.training import trainer_ranks
from tests.training.test_hooks import with_hooks

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


def train_until_killed_while_writing(rank: int, recipe: Path, overrides: list[str]) -> None:
    """Be killed in step 6 by SIGKILL, while the checkpoint of step 4 is being written."""
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    from dsv3_plugin.training.hooks import Hook

    writes = threading.Event()
    write = FileSystemWriterAsync.write_preloaded_data_multithread

    def write_or_hang(
        transforms: Any, use_msc: bool, rank: int, buckets: Any, results: Any
    ) -> None:
        if "iter_0000004" in str(buckets[0][0]):
            writes.set()
            threading.Event().wait()
        write(transforms, use_msc, rank, buckets, results)

    FileSystemWriterAsync.write_preloaded_data_multithread = staticmethod(write_or_hang)

    class Killed(Hook):
        def after_step(self, step: Any) -> None:
            if step.iteration == 6:
                assert writes.wait(60)
                os.kill(os.getpid(), signal.SIGKILL)

    trainer_ranks.train(rank, recipe, overrides, with_hooks(Killed()))


def test_killed_while_a_checkpoint_is_written_the_one_before_is_there(trained, tmp_path):
    folder = tmp_path / "run"
    overrides = [
        f"directory={folder}", f"data.path={trained.data}", "training.steps=6",
        "checkpoint.interval=2", "checkpoint.keep=1", "checkpoint.async_save=true",
    ]  # fmt: skip
    killed, resumed = tmp_path / "killed", tmp_path / "resumed"
    killed.mkdir(), resumed.mkdir()
    begin = (2, train_until_killed_while_writing, trained.recipe, overrides)
    run_ranks(*begin, scratch=killed, missing=(0, 1))
    # Training has gone on: the metrics of step 5 are there, and of step 4 no whole checkpoint is.
    assert numbers(folder)[-1]["iteration"] >= 5
    assert saved(folder) == ["iter_0000002", "iter_0000004"]
    assert [is_complete(folder / "checkpoints" / name) for name in saved(folder)] == [True, False]
    run_ranks(2, trainer_ranks.train, trained.recipe, overrides, scratch=resumed)
    undisturbed = [record for record in numbers(trained.folder) if record["iteration"] <= 6]
    assert numbers(folder) == undisturbed
    assert saved(folder) == ["iter_0000006"]
    assert is_complete(folder / "checkpoints" / "iter_0000006")


@pytest.mark.parametrize(
    ("blocking", "place"), [(False, "step 5"), (True, "the checkpoint of step 4")]
)
def test_a_checkpoint_that_is_waited_for_is_the_place_where_it_fails(blocking, place):
    def lose(blocking: bool = False) -> None:
        raise RuntimeError("Connection closed by peer")

    run = Run(recipe=SimpleNamespace(checkpoint_folder=Path("/")), folder=None, machine=None)
    run.place, run.unfinished = "step 5", 4
    with run.in_charge(), pytest.raises(RuntimeError, match="Connection closed"):
        around_upstream.maybe_finalize_async_save(lose)(blocking=blocking)
    assert run.place == place


def test_what_training_goes_on_with_is_copied_before_it_is_written():
    lives, gathered = torch.zeros(3), torch.ones(3)
    staged = [("path", "key", (["an object"], [("a", lives), ("b", gathered)]))]
    buckets = [("path", "key", (["an object"], [("a", lives), ("b", torch.ones(3))]))]
    [(path, key, (objects, [(_, first), (_, second)]))] = own_copies(buckets, staged)
    assert (path, key, objects) == ("path", "key", ["an object"])
    lives += 5
    assert first.tolist() == [0, 0, 0]
    assert second is gathered  # from a GPU it is a copy already


def queue_now() -> Any:
    return get_write_results_queue(lambda: "between processes")()


@pytest.mark.parametrize("asynchronous", [False, True], ids=["at once", "meanwhile"])
def test_a_run_has_a_queue_of_its_own_while_it_saves(monkeypatch, asynchronous):
    seen = []
    monkeypatch.setattr(
        around_upstream, "get_args", lambda: SimpleNamespace(async_save=asynchronous)
    )
    monkeypatch.setattr(around_upstream.training, "maybe_finalize_async_save", lambda **_: None)
    save = around_upstream.save_checkpoint(lambda iteration: seen.append(queue_now()))
    run = Run(recipe=None, folder=None, machine=None)
    assert queue_now() == "between processes"
    with run.in_charge():
        assert queue_now() == "between processes"  # whoever asks dist_checkpointing meanwhile
        save(3)
        assert queue_now() == "between processes"
    assert isinstance(seen[0], queue.Queue)


def test_a_save_that_fails_leaves_the_queue_as_it_was(monkeypatch):
    monkeypatch.setattr(around_upstream, "get_args", lambda: SimpleNamespace(async_save=False))
    monkeypatch.setattr(around_upstream.training, "maybe_finalize_async_save", lambda **_: None)

    def fail(iteration: int) -> None:
        raise KeyboardInterrupt

    with Run(recipe=None, folder=None, machine=None).in_charge():
        with pytest.raises(KeyboardInterrupt):
            around_upstream.save_checkpoint(fail)(3)
        assert queue_now() == "between processes"
