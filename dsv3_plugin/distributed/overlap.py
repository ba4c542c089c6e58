"""Two computations that take turns: where one waits for a collective, the other computes.

DualPipe runs the forward of one micro-batch and the backward of another together, so that the
all-to-all of one is hidden by the arithmetic of the other (arXiv 2412.19437, section 3.2.1). Here
the two run on two threads of which exactly one has the turn. A dispatcher starts its collective
asynchronously and calls `wait(work)`; that passes the turn, and the partner runs up to its own next
collective. Layer by layer the two thus advance in step (attention, dispatch, experts, combine), and
the order in which collectives are issued depends on the model's structure alone: it is the same on
every rank of an expert-parallel group, as a process group demands.

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
    """One of the two computations: its turn, and whether it has ended."""

    def __init__(self) -> None:
        self.turn = threading.Semaphore(0)
        self.ended = False


class _Pair:
    def __init__(self) -> None:
        self.forward, self.backward = _Side(), _Side()

    def other(self, side: _Side) -> _Side:
        return self.backward if side is self.forward else self.forward


_pair: _Pair | None = None
_here = threading.local()


def _my_side(pair: _Pair) -> _Side:
    # For CUDA tensors autograd runs the backward on a device thread of its own, which knows
    # nothing of ours: any thread that is not the forward's works for the backward.
    return pair.forward if getattr(_here, "is_forward", False) else pair.backward


def wait(work: Work) -> None:
    """Wait for a collective; inside a pair, let the partner compute meanwhile."""
    pair = _pair
    if pair is not None:
        side = _my_side(pair)
        partner = pair.other(side)
        if not partner.ended:
            partner.turn.release()
            side.turn.acquire()
    work.wait()


class PerSide[T]:
    """An object that keeps what its caller is in the middle of: one for each side of a pair.

    From one call to the next a dispatcher holds the tokens under way on itself. Where both sides
    are in the same layer (a pair of one stage with itself, when the backward computes the layer
    again), either would find what the other left there while it waited.

    Args:
        own: what the forward uses, and everything outside a pair.
        duplicate: makes of it, when first needed, what the backward of a pair uses.
    """

    def __init__(self, own: T, duplicate: Callable[[T], T]) -> None:
        self._own = own
        self._duplicate = duplicate
        self._backwards: T | None = None

    @property
    def here(self) -> T:
        """The one that the running side uses."""
        pair = _pair
        if pair is None or _my_side(pair) is pair.forward:
            return self._own
        if self._backwards is None:
            self._backwards = self._duplicate(self._own)
        return self._backwards


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


# The backward's thread lives as long as the process: making one for every pair would cost more
# than a small layer computes.
_backward_thread = ThreadPoolExecutor(1, thread_name_prefix="backward")


def run_pair[F, B](forward: Callable[[], F], backward: Callable[[], B]) -> tuple[F, B]:
    """Run a forward and a backward as a pair; the forward has the first turn.

    Returns:
        What the two returned.

    Raises:
        Exception: what either raised, once both have ended.
    """
    global _pair
    pair = _pair = _Pair()
    settings = _thread_settings()

    def side(me: _Side, body: Callable[[], Any]) -> Any:
        me.turn.acquire()
        try:
            return body()
        finally:
            me.ended = True
            pair.other(me).turn.release()

    def backward_side() -> B:
        with contextlib.ExitStack() as stack:
            for setting in settings:
                stack.enter_context(setting)
            return side(pair.backward, backward)

    pending = _backward_thread.submit(backward_side)
    pair.forward.turn.release()
    _here.is_forward = True
    try:
        forward_result = side(pair.forward, forward)
    finally:
        try:
            backward_result = pending.result()
        finally:
            _here.is_forward = False
            _pair = None
    return forward_result, backward_result
