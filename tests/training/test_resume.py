"""A run that is stopped or killed and started again ends as an undisturbed one, bit for bit."""

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dsv3_plugin.checkpoint.tracker import is_complete
from dsv3_plugin.files.run_folder import RunFolder
from tests.small_runs import Command, Trained, numbers, records, steps_taken


def tensorboard_losses(folder: Path) -> list[tuple[int, float]]:
    """Every loss that TensorBoard shows of a run, in order."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("lm loss")]


def saving(folder: Path, iteration: int) -> bool:
    """Whether the checkpoint of an iteration is being written at this moment."""
    checkpoint = folder / "checkpoints" / f"iter_{iteration:07d}"
    return checkpoint.exists() and not (checkpoint / "metadata.json").exists()


@dataclass
class Run:
    """The small recipe in a folder of its own."""

    undisturbed: Trained
    folder: Path

    def start(
        self, make: Callable[..., Command] = Command.forked, *more: str, **options: Any
    ) -> Command:
        recipe, data = self.undisturbed.recipe, self.undisturbed.data
        overrides = (f"directory={self.folder}", f"data.path={data}", *more)
        return make("train", recipe, *overrides, **options)

    @property
    def saved(self) -> int:
        return RunFolder(self.folder).steps_saved()

    def must_end_as_undisturbed(self, **options: Any) -> str:
        """Go on to the end; what the command says on the way."""
        ended = self.start(**options).end()
        assert ended.code == 0, ended.output
        assert numbers(self.folder) == numbers(self.undisturbed.folder)
        assert tensorboard_losses(self.folder) == tensorboard_losses(self.undisturbed.folder)
        return ended.output


@pytest.fixture
def run(trained, tmp_path) -> Run:
    """A run that is to be disturbed, with the data of the undisturbed one."""
    return Run(trained, tmp_path / "run")


def test_sigterm_to_all_of_it_saves_and_stops(run):
    started = run.start().when(lambda: steps_taken(run.folder) >= 2)
    ended = started.send_everyone(signal.SIGTERM).end()
    assert ended.code == 0, ended.output
    saved = run.saved
    assert saved >= 2
    assert f"Stopped: the same command goes on from step {saved}." in ended.output
    assert f"Going on from step {saved} of 12." in run.must_end_as_undisturbed()


def test_sigterm_to_all_of_it_waits_for_a_checkpoint_that_is_written_meanwhile(run):
    started = run.start(Command.forked, "checkpoint.async_save=true", "checkpoint.keep=1")
    ended = started.when(lambda: steps_taken(run.folder) >= 2).send_everyone(signal.SIGTERM).end()
    assert ended.code == 0, ended.output
    assert f"Stopped: the same command goes on from step {run.saved}." in ended.output
    [kept] = (run.folder / "checkpoints").glob("iter_*")
    assert kept.name == f"iter_{run.saved:07d}"
    assert is_complete(kept)


def test_a_killed_rank_is_named_with_its_log(run):
    started = run.start().when(lambda: steps_taken(run.folder) >= 5)
    ended = started.send(signal.SIGKILL, to=started.ranks[1]).end()
    assert ended.code == 1
    assert "rank 1 was killed by signal 9 (SIGKILL)" in ended.output
    assert f"see {run.folder}/logs/rank1.log" in ended.output
    assert "Traceback" not in ended.output
    assert run.saved >= 4
    run.must_end_as_undisturbed()


def test_killed_inside_a_save_it_goes_on_from_the_one_before(run):
    started = run.start().when(lambda: saving(run.folder, 8))
    ranks = started.ranks
    ended = started.send(signal.SIGKILL).end()
    assert ended.code == -signal.SIGKILL
    assert run.saved in (4, 8)
    run.must_end_as_undisturbed()
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks), "ranks outlive their parent"


@pytest.mark.long
def test_after_ctrl_c_it_goes_on_under_torchrun(run):
    started = run.start().when(lambda: steps_taken(run.folder) >= 9)
    ended = started.send(signal.SIGINT).end()
    assert ended.code == 0, ended.output
    assert "Stopped" in ended.output or "Done" in ended.output
    torchrun = ("torch.distributed.run", "--nproc-per-node=2", "-m")
    run.must_end_as_undisturbed(make=Command, prefix=torchrun)


def test_a_second_ctrl_c_ends_it_at_once(run):
    started = run.start(Command)
    started.when(lambda: len(started.ranks) == 2)
    # Not SIGINT twice: two of one kind merge into one where the machine is too busy between them.
    ended = started.send(signal.SIGINT).send(signal.SIGTERM).end()
    assert ended.code == 130
    assert "Ended without saving: the same command begins anew" in ended.output
    assert "Traceback" not in ended.output
    assert not (run.folder / "checkpoints").exists()


def test_what_a_kill_before_the_last_evaluation_left_out_is_done(trained, tmp_path):
    """Upstream evaluates after the last save; the run then has its tokens and not this number."""
    folder = Path(shutil.copytree(trained.folder, tmp_path / "run"))
    *lines, last = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    loss = json.loads(last)["validation_loss"]
    (folder / "metrics.jsonl").write_text("".join(lines))
    ended = Run(trained, folder).start().end()
    assert ended.code == 0, ended.output
    assert "Going on from step 12 of 12." in ended.output
    assert "Done: step 12" in ended.output
    *before, after = records(folder)
    assert before == [json.loads(line) for line in lines]
    # On other documents: here upstream had evaluated before it saved, and counted those it read.
    assert after["iteration"] == 12
    assert after["validation_loss"] == pytest.approx(loss, abs=0.1)
