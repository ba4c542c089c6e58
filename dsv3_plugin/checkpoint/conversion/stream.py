"""Writes tensors into place, in parallel, so that a killed run can be continued.

A `Job` produces the blocks of one or a few tensors; workers run jobs and write each block where it
belongs, so memory is a few blocks per worker, whatever the size of the model. Reading, summing,
converting and writing all happen outside Python's lock, so threads are enough.
"""

import contextlib
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from zlib_ng.zlib_ng import crc32

from dsv3_plugin.checkpoint.conversion import journal, manifest_file
from dsv3_plugin.checkpoint.conversion.job import NOTHING, Job, Kept, kept_of
from dsv3_plugin.checkpoint.conversion.journal import Checksums
from dsv3_plugin.checkpoint.conversion.workers import worker_threads
from dsv3_plugin.checkpoint.formats.target import Piece, Target
from dsv3_plugin.checkpoint.tracker import INCOMPLETE
from dsv3_plugin.errors import UserError
from dsv3_plugin.files import full_disk, locks
from dsv3_plugin.files.atomic import sweep, sync_folder
from dsv3_plugin.numbers import bytes_text

BLOCK_BYTES = 16 << 20
"""Bytes of a block that a job produces at once: the unit of memory."""

_CACHE_BYTES = 256 << 10
"""Bytes that are summed and then written, so that they are still in the core's cache."""

Progress = Callable[[int, int], None]
"""Called with (bytes of the source done, bytes in all), first with what an earlier run has done."""


@dataclass(frozen=True)
class Ahead:
    """What a conversion is about to do."""

    source_bytes: int
    """Bytes that it will read."""
    target_bytes: int
    """Bytes that it will write."""
    free_bytes: int
    """What the target's disk has free."""
    files: int = 1
    """Files that it will write the tensors into."""
    kept: Kept = NOTHING
    """Of all these, what an earlier run has written."""


Announce = Callable[[Ahead], None]
"""Called once, before anything is written."""


def refuse_taken(root: Path, header: dict[str, Any], *, resume: bool) -> None:
    """Look whether a conversion can go into a folder, which is held; it need not be there.

    Args:
        header: says what is converted and how.
        resume: an unfinished conversion may be there.

    Raises:
        OtherTargetError: something else is there.
        UserError: an unfinished conversion is, which is not to be continued.
    """
    if (root / INCOMPLETE).exists():
        if resume:
            return
        raise UserError(
            f"{root} holds an unfinished conversion: continue it with --resume, or remove the "
            "folder."
        )
    # Of a mark a kill may have left less, which is swept.
    if root.exists() and any(not p.name.startswith(f".{INCOMPLETE}.") for p in root.iterdir()):
        other = "choose another folder"
        if finished := manifest_file.read(root):
            kind, source = finished.get("conversion"), finished.get("source")
            if kind and source and (kind, source) != (header["conversion"], header["source"]):
                raise journal.OtherTargetError(
                    f"{root} is not empty, it holds a finished {kind} of {source}: {other}."
                )
            raise journal.OtherTargetError(
                f"{root} is not empty, it holds a conversion that is finished: check it with "
                f"--resume, or {other}."
            )
        raise journal.OtherTargetError(f"{root} is not empty: {other}.")


def written_before(root: Path, header: dict[str, Any], *, resume: bool) -> Checksums:
    """What an earlier run has finished of a conversion into a folder that is to go on.

    Raises OtherTargetError if it was another conversion.
    """
    mark = root / INCOMPLETE
    return journal.read(mark, header) if resume and mark.exists() else {}


class TargetFolder:
    """The files of a conversion's target while they are written."""

    def __init__(self, root: Path, folder: Path, files: dict[str, int]) -> None:
        """`files` (name → bytes) go into `folder`; the mark of incompleteness into `root`."""
        self.root, self._folder, self._files = root, folder, files
        self._descriptors: dict[str, int] = {}
        self.kept = NOTHING
        """What `write` found written by an earlier run, and right."""

    def begin(self, header: dict[str, Any], *, resume: bool) -> Checksums:
        """Claims the folder and its room on the disk; returns what an earlier run has finished.

        Args:
            header: says what is converted and how; a run that is resumed must have said the same.
            resume: continue an unfinished run, if there is one.

        Raises OtherTargetError if something else is in the folder, UserError if it cannot be
        written or is too small.
        """
        mark = self.root / INCOMPLETE
        with as_sentence(self.root):
            sweep(mark)
            if not mark.exists() or not resume:
                refuse_taken(self.root, header, resume=resume)
            done = written_before(self.root, header, resume=resume)
            self._require_room()
            self.root.mkdir(parents=True, exist_ok=True)
            journal.begin(mark, header, done)
            self._folder.mkdir(exist_ok=True)
        for file, size in self._files.items():
            with as_sentence(self._folder / file):
                descriptor = os.open(
                    self._folder / file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644
                )
                self._descriptors[file] = descriptor
                os.ftruncate(descriptor, size)
        return done

    def write(
        self, jobs: Sequence[Job], done: Checksums, workers: int, progress: Progress
    ) -> Checksums:
        """Runs the jobs that are not `done`; returns the checksums of all targets.

        What was done is read back and compared with its checksum; if it differs it is done again.
        """
        total = sum(job.read_bytes for job in jobs)
        advanced = kept_of(jobs, done).source_bytes
        finished: Checksums = {}
        right: Checksums = {}
        progress(advanced, total)
        notes = journal.Journal(self.root / INCOMPLETE, self.sync)
        failed = threading.Event()

        def run(job: Job) -> tuple[Checksums, bool]:
            earlier = {t.name: done[t.name] for t in job.targets if t.name in done}
            if job.is_among(done) and all(
                self._checksums(target) == earlier[target.name] for target in job.targets
            ):
                return earlier, False
            return self._run(job, failed), True

        answers: queue.SimpleQueue[tuple[Job, Future]] = queue.SimpleQueue()
        with worker_threads(workers) as pool:
            try:
                for job in jobs:
                    future = pool.submit(run, job)
                    future.add_done_callback(lambda done, job=job: answers.put((job, done)))
                for _ in jobs:
                    job, future = answers.get()
                    checksums, is_new = future.result()
                    finished |= checksums
                    if not job.is_among(done):
                        advanced += job.read_bytes
                    progress(advanced, total)
                    if not is_new:
                        right |= checksums
                    else:
                        with as_sentence(self.root):
                            notes.add(checksums, sum(target.nbytes for target in job.targets))
            except BaseException:
                failed.set()
                pool.shutdown(wait=False, cancel_futures=True)
                with contextlib.suppress(OSError, UserError):
                    for job, checksums in _done_besides(answers):
                        notes.add(checksums, sum(target.nbytes for target in job.targets))
                    notes.commit()
                raise
            with as_sentence(self.root):
                notes.commit()
        self.kept = kept_of(jobs, right)
        return finished

    def close(self) -> None:
        """Closes the files, as they are."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def complete(self) -> None:
        """Takes the mark away: the very last step, after everything else is in place."""
        sync_folder(self.root)
        (self.root / INCOMPLETE).unlink()
        sync_folder(self.root)

    def _require_room(self) -> None:
        """Refuses what cannot fit, before anything is written."""
        there = 0
        for file in self._files:
            with contextlib.suppress(FileNotFoundError):
                there += (self._folder / file).stat().st_blocks * 512
        needed, free = sum(self._files.values()) - there, free_bytes(self._folder)
        if needed > free:
            raise UserError(
                f"{self.root} needs {bytes_text(needed)} more, "
                f"its disk has {bytes_text(free)} free."
            )

    def sync(self) -> None:
        """Makes everything written so far last."""
        for file, descriptor in list(self._descriptors.items()):
            with as_sentence(self._folder / file):
                os.fsync(descriptor)
        with as_sentence(self._folder):
            sync_folder(self._folder)

    def _run(self, job: Job, failed: threading.Event) -> Checksums:
        sinks = [_Sink(target, self) for target in job.targets]
        for block in job.blocks():
            if failed.is_set():
                break
            for sink, tensor in zip(sinks, block, strict=True):
                sink.write(tensor)
        else:
            checksums = {sink.target.name: sink.finish() for sink in sinks}
            if job.check:
                job.check(checksums)
            return checksums
        raise UserError("stopped because another tensor failed.")

    def put(self, file: str, data: memoryview | bytes, position: int, tensor: str = "") -> None:
        """Writes bytes, of a tensor, at a position of a file."""
        with as_sentence(self._folder / file, tensor):
            while data:
                written = os.pwrite(self._descriptors[file], data, position)
                data, position = data[written:], position + written

    def _checksums(self, target: Target) -> list[str]:
        """The checksums of what is in the files; those of a damaged container match nothing."""
        found = []
        for file, position, nbytes, container in target.pieces:
            descriptor, crc = self._descriptors[file], 0
            start = position + (container.start if container else 0)
            for offset in range(0, nbytes, BLOCK_BYTES):
                size = min(BLOCK_BYTES, nbytes - offset)
                crc = crc32(os.pread(descriptor, size, start + offset), crc)
            whole = container is None or (
                os.pread(descriptor, container.start, position) == container.head(crc)
                and os.pread(descriptor, container.length - container.start - nbytes,
                             start + nbytes) == container.tail(crc)
            )  # fmt: skip
            found.append(f"{crc:08x}" if whole else "damaged")
        return found


def _done_besides(
    answers: queue.SimpleQueue[tuple[Job, Future]],
) -> Iterator[tuple[Job, Checksums]]:
    """The jobs among the answers that nobody has heard yet which are done."""
    while not answers.empty():
        job, future = answers.get()
        if not future.cancelled() and future.exception() is None:
            checksums, is_new = future.result()
            if is_new:
                yield job, checksums


class _Sink:
    """Puts the bytes of one target where they go, in order, and sums them."""

    def __init__(self, target: Target, folder: TargetFolder) -> None:
        self.target, self._folder = target, folder
        self._pieces = iter(target.pieces)
        self._checksums: list[str] = []
        self._next()

    def write(self, tensor: torch.Tensor) -> None:
        """Appends the values of a tensor of the target's type."""
        if tensor.dtype != self.target.dtype:
            raise AssertionError(f"{self.target.name}: {tensor.dtype} for {self.target.dtype}")
        data = as_bytes(tensor)
        while data:
            if self._piece is None:
                raise AssertionError(f"{self.target.name}: more bytes than it has place for")
            size = min(len(data), _CACHE_BYTES, self._piece.nbytes - self._done)
            self._crc = crc32(data[:size], self._crc)
            position = self._start + self._done
            self._folder.put(self._piece.file, data[:size], position, self.target.name)
            self._done += size
            data = data[size:]
            if self._done == self._piece.nbytes:
                self._end_piece(self._piece)

    def finish(self) -> list[str]:
        """The checksums; an error if bytes are still missing."""
        if self._piece is not None:
            raise AssertionError(f"{self.target.name}: fewer bytes than it has place for")
        return self._checksums

    def _next(self) -> None:
        self._piece = next(self._pieces, None)
        self._done, self._crc = 0, 0
        if self._piece is not None:
            container = self._piece.container
            self._start = self._piece.position + (container.start if container else 0)

    def _end_piece(self, piece: Piece) -> None:
        if piece.container is not None:
            end = self._start + piece.nbytes
            head, tail = piece.container.head(self._crc), piece.container.tail(self._crc)
            self._folder.put(piece.file, head, piece.position, self.target.name)
            self._folder.put(piece.file, tail, end, self.target.name)
        self._checksums.append(f"{self._crc:08x}")
        self._next()


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a CPU tensor in row-major order; no copy if it is contiguous."""
    return memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy())


@contextlib.contextmanager
def as_sentence(path: Path, tensor: str = "") -> Iterator[None]:
    """What the operating system refuses, as a sentence about `path` and the tensor in hand."""
    what = f"{tensor} in {path}" if tensor else str(path)
    try:
        yield
    except OSError as error:
        if full_disk.is_full(error):
            raise UserError(
                f"the disk is full: {what} cannot be written. Free some space and continue with "
                "--resume."
            ) from error
        reason = full_disk.reason(error).lower()
        raise UserError(
            f"{what} cannot be written: {reason}; make it writable, or choose another folder."
        ) from error


def free_bytes(folder: Path) -> int:
    """What is free on the disk that a folder is on, or will be."""
    folder = folder.absolute()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    return shutil.disk_usage(existing).free


def sole_writer(root: Path) -> locks.FolderLock:
    """Holds the target folder against other conversions.

    Raises UserError if another one holds it, or it cannot be made.
    """
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file: name a new folder.")
    with as_sentence(root):
        lock = locks.take(root)
    if lock is None:
        raise UserError(
            f"another conversion is writing {root}: wait for it, or choose another folder."
        )
    return lock
