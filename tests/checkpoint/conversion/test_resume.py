"""A conversion killed at any step is never taken for complete, and a second run finishes it."""

import errno
import os
import random
import shutil
import time

import pytest

from dsv3_plugin.checkpoint import export_hf, import_hf, tracker
from dsv3_plugin.checkpoint.conversion import journal, stream
from dsv3_plugin.checkpoint.conversion.verify import verify
from dsv3_plugin.errors import UserError
from tests.checkpoint.killing import die_at, kill_after, start, steps_of
from tests.checkpoint.samples import (
    assert_same_bytes,
    random_tensors,
    read_tensors,
    small_model,
    write_folder,
)

MODEL = small_model(num_layers=2, moe_layer_freq="[0,1]")
KILLS = 50
"""Runs that are killed in each direction; those that were done before do not count."""
OPTIONS = {"import": {"dtype": None}, "export": {"fp8": True, "shard_size": 300_000}}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """What each direction converts."""
    root = tmp_path_factory.mktemp("killed")
    write_folder(root / "folder", MODEL, random_tensors(MODEL, "fp8"))
    import_hf(root / "folder", root / "checkpoint")
    return {"import": root / "folder", "export": root / "checkpoint"}


def taken_for_complete(direction, target):
    """Whether anybody would load what is there."""
    if direction == "import":
        if tracker.newest_complete(target) is not None:
            return True
        # Upstream goes by the tracker file alone.
        return (target / tracker.TRACKER).exists() and not (target / tracker.INCOMPLETE).exists()
    if (target / tracker.INCOMPLETE).exists():
        return False
    return any(target.glob("*.safetensors")) if target.exists() else False


def finish(direction, source, target):
    """Runs it again with --resume; everything is there and right."""
    {"import": import_hf, "export": export_hf}[direction](
        source, target, resume=True, **OPTIONS[direction]
    )
    assert not (target / tracker.INCOMPLETE).exists()
    assert not verify(source, target).differences
    assert not list(target.rglob("*.tmp"))
    assert not list(target.rglob("*.part"))


@pytest.mark.parametrize("direction", ["import", "export"])
def test_death_at_any_step(sources, tmp_path, direction):
    source, options = sources[direction], OPTIONS[direction]
    steps = steps_of(direction, source, tmp_path / "whole", **options)
    assert steps > 100
    # The first and the last steps one by one: there the marks are set and taken away.
    chosen = {*range(6), *range(steps - 10, steps), *range(6, steps, steps // 4)}
    for step in sorted(chosen):
        target = tmp_path / f"at-{step}"
        assert die_at(step, direction, source, target, **options) == 9
        if taken_for_complete(direction, target):
            assert not verify(source, target).differences  # nothing was left to do
        finish(direction, source, target)
        shutil.rmtree(target)


@pytest.mark.parametrize("direction", ["import", "export"])
def test_kill_minus_nine_at_random_moments(sources, tmp_path, direction):
    source, options = sources[direction], OPTIONS[direction]
    draw = random.Random(0)
    for name in ("warm-up", "whole"):  # the first starts the server
        began = time.monotonic()
        start(direction, source, tmp_path / name, **options).join(120)
        takes = time.monotonic() - began
    killed = runs = 0
    while killed < KILLS and runs < 10 * KILLS:
        target = tmp_path / f"run-{runs}"
        for is_first in (True, False):  # the continued run is killed too
            process = start(direction, source, target, resume=True, **options)
            wait = draw.uniform(0.0, takes)
            if kill_after(process, wait):
                killed += 1
            elif is_first:
                takes = wait  # a whole run takes less than that by now
            runs += 1
            if taken_for_complete(direction, target):
                assert not verify(source, target).differences
        finish(direction, source, target)
        shutil.rmtree(target, ignore_errors=True)
    assert killed >= KILLS


@pytest.mark.parametrize("direction", ["import", "export"])
def test_what_is_done_and_right_is_not_done_again(sources, tmp_path, direction, monkeypatch):
    source, target, options = sources[direction], tmp_path / "t", OPTIONS[direction]
    steps = steps_of(direction, source, tmp_path / "whole", **options)
    assert die_at(steps - 15, direction, source, target, **options) == 9
    ran = []
    run = stream.TargetFolder._run
    monkeypatch.setattr(
        stream.TargetFolder, "_run", lambda self, job, *a: ran.append(job) or run(self, job, *a)
    )
    # One tensor's bytes are spoilt behind the journal's back: that one is done again.
    file = next(f for f in target.rglob("*") if f.name.endswith((".distcp", ".safetensors.part")))
    with file.open("r+b") as handle:
        handle.seek(file.stat().st_size // 2)
        byte = handle.read(1)
        handle.seek(-1, 1)
        handle.write(bytes([byte[0] ^ 255]))
    finish(direction, source, target)
    assert sum(bool(job.targets) for job in ran) == 1


def test_a_resumed_run_must_be_the_same(sources, tmp_path):
    source, target = sources["import"], tmp_path / "t"
    assert die_at(60, "import", source, target) == 9
    with pytest.raises(UserError, match="unfinished conversion: continue it with --resume"):
        import_hf(source, target)
    with pytest.raises(UserError, match="was begun without --dtype, not with --dtype fp32"):
        import_hf(source, target, resume=True, dtype="fp32")
    other = write_folder(tmp_path / "other", MODEL, random_tensors(MODEL, "fp8"))
    with pytest.raises(UserError, match="was begun with source"):
        import_hf(other, target, resume=True)
    (target / "INCOMPLETE").write_bytes(b"no journal\n")
    with pytest.raises(UserError, match="INCOMPLETE is damaged"):
        import_hf(source, target, resume=True)


@pytest.mark.parametrize("direction", ["import", "export"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_second_conversion_into_a_folder_waits_its_turn(sources, tmp_path, direction, resume):
    convert = {"import": import_hf, "export": export_hf}[direction]
    target = tmp_path / "t"

    def second(*_):
        with pytest.raises(UserError, match=r"another conversion is writing .*: wait for it, or"):
            convert(sources[direction], target, resume=resume, **OPTIONS[direction])

    convert(sources[direction], target, progress=second, **OPTIONS[direction])
    assert not verify(sources[direction], target).differences


def test_a_refused_conversion_leaves_no_folder_behind(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(UserError, match="its disk has 0 bytes free"):
        import_hf(sources["import"], tmp_path / "new" / "t")
    assert not (tmp_path / "new").exists()


def test_a_journal_that_could_not_be_written_is_left_as_it_is(tmp_path, monkeypatch):
    """Its last line may have been cut short; another one behind that would damage it."""
    path = tmp_path / "INCOMPLETE"
    journal.begin(path, {"conversion": "import"}, {})
    notes = journal.Journal(path, lambda: None)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            notes.add({"a": ["00000000"]}, 1 << 40)
    before = path.read_bytes()
    notes.add({"b": ["00000000"]}, 1 << 40)
    notes.commit()
    assert path.read_bytes() == before


@pytest.mark.parametrize(("cause", "kept"), [(None, ["a"]), (OSError(), [])])
def test_an_interruption_while_it_syncs_is_no_failure_of_the_disk(tmp_path, cause, kept):
    errors = iter([KeyboardInterrupt()])

    def sync():
        for error in errors:
            raise error from cause

    journal.begin(tmp_path / "INCOMPLETE", {"conversion": "import"}, {})
    notes = journal.Journal(tmp_path / "INCOMPLETE", sync)
    notes.add({"a": ["0"]}, 1)
    with pytest.raises(KeyboardInterrupt):
        notes.commit()
    notes.commit()
    assert [*journal.peek(tmp_path / "INCOMPLETE")[1]] == kept


def test_resume_without_anything_to_resume(sources, tmp_path):
    import_hf(sources["import"], tmp_path / "t", resume=True)
    assert not verify(sources["import"], tmp_path / "t").differences
    before = (tmp_path / "t" / "manifest.json").stat().st_mtime_ns
    import_hf(sources["import"], tmp_path / "t", resume=True)  # finished already
    assert (tmp_path / "t" / "manifest.json").stat().st_mtime_ns == before


def test_resumed_export_has_the_same_bytes(sources, tmp_path):
    export_hf(sources["export"], tmp_path / "whole", **OPTIONS["export"])
    assert die_at(90, "export", sources["export"], tmp_path / "t", **OPTIONS["export"]) == 9
    export_hf(sources["export"], tmp_path / "t", resume=True, **OPTIONS["export"])
    assert_same_bytes(read_tensors(tmp_path / "t"), read_tensors(tmp_path / "whole"))
    for file in (tmp_path / "whole").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "t" / file.name).read_bytes()
