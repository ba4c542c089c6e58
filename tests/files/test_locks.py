"""A folder has one holder; nobody is kept waiting by the dead, and nothing is left behind."""

import contextlib
import errno
import fcntl
import multiprocessing
import os
from pathlib import Path

import pytest

from dsv3_plugin.files import locks

_forked = multiprocessing.get_context("fork")


@contextlib.contextmanager
def held_elsewhere(folder: Path, lock_file: str | None = None):
    """Another process holds the folder; yields that process."""
    here, there = _forked.Pipe()

    def hold() -> None:
        with locks.take(folder, lock_file):
            there.send("held")
            there.recv()

    process = _forked.Process(target=hold)
    process.start()
    here.recv()
    try:
        yield process
    finally:
        here.send("enough")
        process.join()


@pytest.fixture(params=[None, ".lock"])
def lock_file(request) -> str | None:
    return request.param


def test_a_second_process_is_told(tmp_path, lock_file):
    with held_elsewhere(tmp_path, lock_file):
        assert locks.take(tmp_path, lock_file) is None
    with locks.take(tmp_path, lock_file) as lock:
        assert lock is not None
        assert locks.take(tmp_path, lock_file) is None, "not even the same process holds it twice"


def test_the_dead_hold_nothing(tmp_path, lock_file):
    with held_elsewhere(tmp_path, lock_file) as process:
        process.kill()
        process.join()
        with locks.take(tmp_path, lock_file) as lock:
            assert lock is not None


def test_what_nothing_came_into_goes_again(tmp_path, lock_file):
    folder = tmp_path / "a" / "b"
    with locks.take(folder, lock_file):
        assert folder.is_dir()
    assert not (tmp_path / "a").exists()
    with pytest.raises(RuntimeError), locks.take(folder, lock_file):
        raise RuntimeError
    assert not (tmp_path / "a").exists()
    with locks.take(folder, lock_file):
        (folder / "result").touch()
    assert (folder / "result").exists()


def test_a_folder_that_was_there_stays(tmp_path, lock_file):
    with locks.take(tmp_path, lock_file):
        pass
    assert [*tmp_path.iterdir()] == []


def test_a_holder_who_takes_the_folder_away_lets_the_next_one_in(tmp_path, lock_file, monkeypatch):
    """The next one has opened it by then, and would hold what nobody finds."""
    folder = tmp_path / "new"
    first = locks.take(folder, lock_file)
    acquire = locks.FolderLock.acquire

    def late(lock: locks.FolderLock, *, wait: bool) -> bool:
        monkeypatch.undo()
        first.__exit__()
        assert not folder.exists()
        return acquire(lock, wait=wait)

    monkeypatch.setattr(locks.FolderLock, "acquire", late)
    with locks.take(folder, lock_file):
        assert locks.take(folder, lock_file) is None
    assert not folder.exists()


def test_waiting_is_said_once_and_ends_with_the_holder(tmp_path):
    here, there = _forked.Pipe()

    def wait() -> None:
        with locks.wait_for(tmp_path, lambda: there.send("waiting")):
            there.send("held")

    with held_elsewhere(tmp_path):
        waiter = _forked.Process(target=wait)
        waiter.start()
        assert here.recv() == "waiting"
        assert not here.poll()
    assert here.recv() == "held"
    waiter.join()

    with locks.wait_for(tmp_path, lambda: pytest.fail("there is nobody to wait for")):
        pass


def test_a_planted_link_is_not_locked(tmp_path):
    (tmp_path / "victim").touch()
    (tmp_path / ".lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        locks.take(tmp_path, ".lock")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF])
def test_a_file_system_without_locks_lets_everybody_in(tmp_path, lock_file, monkeypatch, number):
    def flock(handle, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with locks.take(tmp_path, lock_file), locks.wait_for(tmp_path, lambda: None):
        pass


def test_another_error_is_an_error(tmp_path, monkeypatch):
    def flock(handle, how):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output"):
        locks.take(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="File exists"):
        locks.take(tmp_path / "file")
