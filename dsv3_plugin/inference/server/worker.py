"""The engine in a thread of its own, asked from an event loop.

Only that thread touches the engine. It takes what it is asked between steps, and hands on what a
step brought. A step that fails costs the answers that it had part in; the thread ends only where
the model cannot compute any more.
"""

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from dsv3_plugin.inference.engine import Engine, Progress
from dsv3_plugin.inference.generate import generate
from dsv3_plugin.inference.requests import Request

_Told = Progress | Exception

_LOG = logging.getLogger(__name__)


class Stopped(Exception):
    """The engine does not run any more."""


class Failed(Exception):
    """A step failed, and the answer with it."""


class Busy(Exception):
    """More answers would wait than may."""


@dataclass(frozen=True)
class _Listener:
    """Who waits for a request.

    Attributes:
        answers: so many.
        loop: in which it waits.
        arrived: what became of one, or why none will.
    """

    answers: int
    loop: asyncio.AbstractEventLoop
    arrived: asyncio.Queue[_Told]

    def tell(self, error: Exception) -> None:
        """Why none will."""
        _hand_on(self.loop, [(self, error)])


def _hand_on(loop: asyncio.AbstractEventLoop, told: list[tuple[_Listener, _Told]]) -> None:
    """Tell listeners of one loop, which is woken once for all of them."""

    def put() -> None:
        for listener, one in told:
            listener.arrived.put_nowait(one)

    with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
        loop.call_soon_threadsafe(put)


class EngineThread:
    """Runs an engine.

    Args:
        engine: nobody else may use it from now on.
        most_waiting: answers that may wait for their turn.

    Attributes:
        failure: what ended it, if anything did.
    """

    def __init__(self, engine: Engine, most_waiting: int) -> None:
        self.failure: BaseException | None = None
        self._engine, self._most_waiting = engine, most_waiting
        self._asked: queue.SimpleQueue[tuple[Callable[[], Any], Future] | None] = (
            queue.SimpleQueue()
        )
        self._listeners: dict[int, _Listener] = {}
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the step that runs; those who listen are told."""
        self._asked.put(None)
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._thread.is_alive() and not self._ended

    async def ask[Answer](self, question: Callable[[Engine], Answer]) -> Answer:
        """What a function of the engine gives, called between two steps.

        Raises:
            Stopped: the engine ended.
        """
        future: Future = Future()
        self._asked.put((lambda: question(self._engine), future))
        if self._ended:  # nobody will take it
            self._refuse_asked()
        return await asyncio.wrap_future(future)

    @asynccontextmanager
    async def answers(
        self, requests: list[Request]
    ) -> AsyncIterator[AsyncIterator[tuple[int, Progress]]]:
        """The progress of requests, each with its place among them. All are taken or none; what is
        left of them when the block ends is cancelled.

        Raises:
            UserError: one cannot be answered.
            Busy: too many wait.
            Failed: a step failed that had part in them.
            Stopped: the engine ended.
        """
        loop, arrived = asyncio.get_running_loop(), asyncio.Queue()
        numbers: list[int] = []

        def add(engine: Engine) -> None:
            wanted = sum(request.sampling.n for request in requests)
            if engine.scheduler.waiting + wanted > self._most_waiting:
                raise Busy
            numbers.extend(engine.add_all(requests))
            for number, request in zip(numbers, requests, strict=True):
                self._listeners[number] = _Listener(request.sampling.n, loop, arrived)

        async def progress() -> AsyncIterator[tuple[int, Progress]]:
            left = sum(request.sampling.n for request in requests)
            while left:
                one = await arrived.get()
                if isinstance(one, Exception):
                    raise one
                left -= one.completion is not None
                yield numbers.index(one.request), one

        try:
            await self.ask(add)
            yield progress()
        finally:  # behind `add`, should that still come: who asked may have left meanwhile
            self._asked.put((lambda: self._leave(numbers), Future()))

    def _leave(self, numbers: list[int]) -> None:
        for number in numbers:
            self._listeners.pop(number, None)
            self._engine.cancel(number)

    def _run(self) -> None:
        try:
            while self._answer_questions():
                if self._engine.busy:
                    self._step()
        except BaseException as error:  # the thread's last words; those who wait have to hear
            self.failure = error
            _LOG.exception("The engine has stopped.")
        self._ended = True
        for listener in self._listeners.values():
            listener.tell(Stopped())
        self._listeners.clear()
        self._refuse_asked()

    def _step(self) -> None:
        try:
            progress = self._engine.step()
        except Exception:
            _LOG.exception("A step of the engine failed.")
            self._drop_what_failed()
            return
        told: dict[asyncio.AbstractEventLoop, list[tuple[_Listener, _Told]]] = {}
        for one in progress:
            if (listener := self._listeners.get(one.request)) is not None:
                told.setdefault(listener.loop, []).append((listener, one))
        for loop, of_loop in told.items():
            _hand_on(loop, of_loop)

    def _drop_what_failed(self) -> None:
        """End all answers that the failed step may have touched, and forget what was computed.

        Raises what the model raises if it computes nothing any more, not even a token of an engine
        that was just made.
        """
        unbegun = self._engine.unbegun()
        self._engine.release_cache()
        for number, listener in list(self._listeners.items()):
            if unbegun[number] < listener.answers:
                self._leave([number])
                listener.tell(Failed())
        list(generate(self._engine.model, [0], max_new_tokens=1))

    def _refuse_asked(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                one = self._asked.get_nowait()
                if one is not None and one[1].set_running_or_notify_cancel():
                    one[1].set_exception(Stopped())

    def _answer_questions(self) -> bool:
        """Those that came; waits for one if there is nothing else to do. False to end."""
        while not (self._engine.busy and self._asked.empty()):
            one = self._asked.get()
            if one is None:
                return False
            question, future = one
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(question())
                except Exception as error:
                    future.set_exception(error)
            if self._asked.empty():
                return True
        return True
