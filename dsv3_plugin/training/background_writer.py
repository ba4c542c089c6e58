"""Writing a checkpoint by threads of this process, at once or while training goes on.

Upstream's `--async-save` hands a rank's tensors to a process of their own. That process reaches a
GPU's tensors through CUDA IPC, which wants a context and memory of its own there; it sees a CPU's
live tensors, which the next step changes; and a SIGTERM to a whole job (`scancel`, preemption) ends
it, and with it the save that the signal asked for. A thread has none of this: the tensors are
copied to host memory first, which takes as long as the PCIe bus does, and what is slow, the file
system, lets other threads go on. It keeps upstream's order of things (`AsyncCallsQueue`): all ranks
ask before each step whether all have written, and only then is the checkpoint made final.
"""

import functools
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCaller, AsyncRequest

from dsv3_plugin.training.run import current_run

Bucket = tuple[str, str, tuple[list[Any], list[tuple[Any, torch.Tensor]]]]
"""Upstream's: what goes into one file, as (path, key, (objects, tensors))."""


class BackgroundWriter(AsyncCaller):
    """Writes one checkpoint of this rank by a thread."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def schedule_async_call(self, request: AsyncRequest) -> None:
        """Copy what is to be written, and begin to write it; on every rank."""
        if request.async_fn is None:  # this rank has nothing to write
            return
        rank, buckets, results = request.async_fn_args
        staged = own_copies(buckets, request.preload_fn())
        for *_, (_, tensors) in buckets:
            tensors.clear()  # the request lives until the end; what was gathered for it need not
        self._thread = threading.Thread(
            target=request.async_fn, args=(rank, staged, results), name="writes", daemon=True
        )
        self._thread.start()

    def is_current_async_call_done(self, blocking: bool = False, no_dist: bool = False) -> bool:
        """Whether all ranks have written; on every rank.

        Args:
            blocking: wait until they have.
            no_dist: ask this rank alone.
        """
        if blocking:
            self.close()
        writes = self._thread is not None and self._thread.is_alive()
        return not writes if no_dist else bool(self.sync_all_async_calls(int(writes)))

    def close(self, abort: bool = False) -> None:
        """Wait for the thread; one that is to be given up ends with the process."""
        if self._thread is not None and not abort:
            self._thread.join()

    def __del__(self) -> None:
        pass


def own_copies(buckets: Sequence[Bucket], staged: Sequence[Bucket]) -> list[Bucket]:
    """The tensors that upstream staged for writing, where none is one that training goes on with.

    Moving to the CPU copies what lies on a GPU, and hands out itself what lies on the CPU.
    """
    return [
        (
            path,
            key,
            (
                objects,
                [
                    (item, copy.clone() if copy.data_ptr() == tensor.data_ptr() else copy)
                    for (item, copy), (_, tensor) in zip(copies, tensors, strict=True)
                ],
            ),
        )
        for (path, key, (objects, copies)), (*_, (_, tensors)) in zip(staged, buckets, strict=True)
    ]


def get_write_results_queue(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps upstream's `get_write_results_queue`: writers in this process need no other one.

    Upstream starts a process to hold the queue even where threads write. That costs seconds at the
    first checkpoint, and a SIGTERM to the job ends it too. A writer process gives its answer
    through no other queue, so whoever asks `dist_checkpointing` to save gets upstream's.
    """

    @functools.wraps(original)
    def in_this_process(*args: Any, **kwargs: Any) -> Any:
        run = current_run()
        return queue.Queue() if run and run.saving_here else original(*args, **kwargs)

    return in_this_process


def get_async_caller(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps upstream's `AsyncCallsQueue._get_async_caller`: a run's checkpoints have our writer."""

    @functools.wraps(original)
    def for_a_run(*args: Any, **kwargs: Any) -> AsyncCaller:
        run = current_run()
        return BackgroundWriter() if run and run.saving_here else original(*args, **kwargs)

    return for_a_run


def init_persistent_async_worker(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps upstream's `init_persistent_async_worker`: a run needs no process that writes."""

    @functools.wraps(original)
    def unless_a_run(*args: Any, **kwargs: Any) -> Any:
        return None if current_run() else original(*args, **kwargs)

    return unless_a_run
