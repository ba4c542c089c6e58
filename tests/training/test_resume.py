"""A run that is stopped, killed and broken again and again ends where an undisturbed one does."""

import signal
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dsv3_plugin.files.run_folder import RunFolder
from tests.small_runs import Command, numbers, steps_taken


def tensorboard_losses(folder: Path) -> list[tuple[int, float]]:
    """Every loss that TensorBoard shows of a run, in order."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("lm loss")]


def saving(folder: Path, iteration: int) -> bool:
    """Whether the checkpoint of an iteration is being written at this moment."""
    checkpoint = folder / "checkpoints" / f"iter_{iteration:07d}"
    return checkpoint.exists() and not (checkpoint / "metadata.json").exists()


def test_stopped_and_killed_in_every_way_it_ends_the_same_bit_for_bit(trained, tmp_path):
    folder = tmp_path / "run"

    def start(*overrides: str, **options) -> Command:
        arguments = (trained.recipe, f"directory={folder}", f"data.path={trained.data}")
        return Command("train", *arguments, *overrides, **options)

    # SIGTERM to the whole job: it saves and stops, wherever it is.
    run = start().when(lambda: steps_taken(folder) >= 2)
    ended = run.send_everyone(signal.SIGTERM).end()
    assert ended.code == 0, ended.output
    saved = RunFolder(folder).steps_saved()
    assert saved >= 2
    assert f"Stopped: the same command goes on from step {saved}." in ended.output

    # kill -9 of one rank: the parent says which, how and where.
    run = start().when(lambda: steps_taken(folder) >= max(5, saved + 1))
    ended = run.send(signal.SIGKILL, to=run.ranks[1]).end()
    assert ended.code == 1
    assert f"Going on from step {saved} of 12." in ended.output
    assert "rank 1 was killed by signal 9 (SIGKILL)" in ended.output
    assert f"see {folder}/logs/rank1.log" in ended.output
    assert "Traceback" not in ended.output
    saved = RunFolder(folder).steps_saved()
    assert saved >= 4

    # kill -9 of the parent inside a save: the checkpoint before is the one that counts.
    run = start().when(lambda: saving(folder, 8))
    ranks = run.ranks
    ended = run.send(signal.SIGKILL).end()
    assert ended.code == -signal.SIGKILL
    assert RunFolder(folder).steps_saved() in (saved, 8)

    # Ctrl-C, and the last part under torchrun.
    run = start().when(lambda: steps_taken(folder) >= 9)
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks), "ranks outlive their parent"
    ended = run.send(signal.SIGINT).end()
    assert ended.code == 0, ended.output
    assert "Stopped" in ended.output or "Done" in ended.output
    ended = start(prefix=("torch.distributed.run", "--nproc-per-node=2", "-m")).end()
    assert ended.code == 0, ended.output

    assert numbers(folder) == numbers(trained.folder)
    assert tensorboard_losses(folder) == tensorboard_losses(trained.folder)


def test_a_second_ctrl_c_ends_it_at_once(trained, tmp_path):
    folder = tmp_path / "run"
    run = Command("train", trained.recipe, f"directory={folder}", f"data.path={trained.data}")
    run.when(lambda: len(run.ranks) == 2)
    # Not SIGINT twice: two of one kind merge into one where the machine is too busy between them.
    ended = run.send(signal.SIGINT).send(signal.SIGTERM).end()
    assert ended.code == 130
    assert "Ended without saving: the same command begins anew" in ended.output
    assert "Traceback" not in ended.output
    assert not (folder / "checkpoints").exists()
