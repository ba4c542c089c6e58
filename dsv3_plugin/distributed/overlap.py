"""Two computations that overlap: where one waits for a collective, the other computes.

DualPipe runs the forward of one micro-batch and the backward of another together, so that the
all-to-all of one is hidden by the arithmetic of the other (arXiv 2412.19437, section 3.2.1). Here
the two run on two threads of which exactly one computes at a time. A dispatcher starts its
collective asynchronously and calls `wait(work)`; that lets the other side go on up to its own next
collective. Layer by layer the two thus advance in step (attention, dispatch, experts, combine), and
the order in which collectives are issued depends on the model's structure alone: it is the same on
every rank of an expert-parallel group, as a process group demands.

On a GPU `work.wait()` holds up the current CUDA stream and not the thread: which stream each side
computes on is for the caller to say (`pipeline.chunk_streams`, by `beside`).

Outside a pair `wait(work)` is `work.wait()`.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch


class Work(Protocol):
    """What torch.distributed's asynchronous collectives return."""

    def wait(self) -> Any: ...


class _Side:
    """One of the two computations.

    Attributes:
        may_run: released by the other side when it waits or has ended.
        ended: nobody waits for it any more.
        duplicates: what this side alone uses, by the `PerSide` whose object it is made of.
    """

    def __init__(self) -> None:
        self.may_run = threading.Semaphore(0)
        self.ended = False
        self.duplicates: dict[Any, Any] = {}


class _Pair:
    """A forward and a backward that run together. Made on the forward's thread."""

    def __init__(self) -> None:
        self.forward, self.backward = _Side(), _Side()
        self._forward_thread = threading.get_ident()

    def running_side(self) -> _Side:
        # For CUDA tensors autograd runs the backward on a device thread of its own, which knows
        # nothing of ours: any thread that is not the forward's works for the backward.
        is_forward = threading.get_ident() == self._forward_thread
        return self.forward if is_forward else self.backward

    def other(self, side: _Side) -> _Side:
        return self.backward if side is self.forward else self.forward

    def let_the_other_run(self) -> None:
        """Returns when the other side waits in its turn, or has ended."""
        side = self.running_side()
        other = self.other(side)
        if not other.ended:
            other.may_run.release()
            side.may_run.acquire()

    def run_side(self, side: _Side, body: Callable[[], Any]) -> Any:
        """What a side does from its start to its end."""
        side.may_run.acquire()
        try:
            return body()
        finally:
            side.ended = True
            self.other(side).may_run.release()


class _Process:
    """The pair that this process runs at the moment, if any.

    Of the process and not of a thread or a context, because those who ask stand on threads of
    autograd that inherit neither. `Overlap.run_pair` alone sets it, and takes it back whatever
    happens.
    """

    def __init__(self) -> None:
        self.pair: _Pair | None = None

    @contextlib.contextmanager
    def running(self, pair: _Pair) -> Iterator[None]:
        if self.pair is not None:
            raise RuntimeError("this process runs a pair already; one runs at a time")
        self.pair = pair
        try:
            yield
        finally:
            self.pair = None


_process = _Process()


def in_a_pair() -> bool:
    """Whether what asks is one side of a pair."""
    return _process.pair is not None


def wait(work: Work) -> None:
    """Wait for a collective; inside a pair, let the other side compute meanwhile."""
    pair = _process.pair
    if pair is not None:
        pair.let_the_other_run()
    work.wait()


@contextlib.contextmanager
def beside(*streams: torch.cuda.Stream | None) -> Iterator[None]:
    """Inside, other CUDA streams compute; outside, the one that is current here.

    They begin when the current stream has done what it was given until now, and what it is given
    afterwards begins when they have ended. None stands for the current stream itself.
    """
    others = [stream for stream in streams if stream is not None]
    for stream in others:
        stream.wait_stream(torch.cuda.current_stream())
    try:
        yield
    finally:
        for stream in others:
            torch.cuda.current_stream().wait_stream(stream)


class PerSide[T]:
    """An object that keeps what its caller is in the middle of: one for each side of a pair.

    From one call to the next a dispatcher holds the tokens under way on itself. Where both sides
    are in the same layer (a pair of one stage with itself, when the backward computes the layer
    again), either would find what the other left there while it waited.

    Args:
        own: what the forward uses, and everything outside a pair.
        duplicate: makes of it, once a pair and when first needed, what the backward uses.
    """

    def __init__(self, own: T, duplicate: Callable[[T], T]) -> None:
        self._own = own
        self._duplicate = duplicate

    @property
    def here(self) -> T:
        """The one that the running side uses."""
        pair = _process.pair
        if pair is None or pair.running_side() is pair.forward:
            return self._own
        duplicates = pair.backward.duplicates
        if self not in duplicates:
            duplicates[self] = self._duplicate(self._own)
        return duplicates[self]


class Overlap:
    """Runs pairs, one after the other.

    It keeps the thread of the backward from one pair to the next: making one for every pair would
    cost more than a small layer computes.
    """

    def __init__(self) -> None:
        self._backward_thread = ThreadPoolExecutor(1, thread_name_prefix="backward")

    def run_pair[F, B](self, forward: Callable[[], F], backward: Callable[[], B]) -> tuple[F, B]:
        """Run a forward and a backward as a pair; the forward runs first.

        Returns:
            What the two returned.

        Raises:
            Exception: what either raised, once both have ended.
        """
        pair = _Pair()
        settings = _thread_settings()

        def backward_side() -> B:
            with contextlib.ExitStack() as stack:
                for setting in settings:
                    stack.enter_context(setting)
                return pair.run_side(pair.backward, backward)

        with _process.running(pair):
            pending = self._backward_thread.submit(backward_side)
            pair.forward.may_run.release()
            try:
                forward_result = pair.run_side(pair.forward, forward)
            finally:
                backward_result = pending.result()
        return forward_result, backward_result


def _thread_settings() -> list[contextlib.AbstractContextManager[Any]]:
    """What torch keeps per thread, as it is on this one, to be entered on another."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings: list[contextlib.AbstractContextManager[Any]] = [
        _threads(torch.get_num_threads()),
        torch.set_grad_enabled(torch.is_grad_enabled()),
        torch.autocast(
            device,
            dtype=torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
            cache_enabled=torch.is_autocast_cache_enabled(),
        ),
    ]
    if device == "cuda":
        settings += [
            torch.cuda.device(torch.cuda.current_device()),
            torch.cuda.stream(torch.cuda.current_stream()),
        ]
    return settings


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    torch.set_num_threads(number)  # OpenMP keeps this per thread
    yield
