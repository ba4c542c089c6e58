"""The engine in a thread of its own, asked from an event loop.

Only that thread touches the engine. It takes what it is asked between steps, and hands on what a
step brought.
"""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any

from dsv3_plugin.inference.engine import Engine, Progress
from dsv3_plugin.inference.requests import Request


class Stopped(Exception):
    """The engine does not run any more."""


class EngineThread:
    """Runs an engine.

    Args:
        engine: nobody else may use it from now on.

    Attributes:
        failure: what ended it, if anything did.
    """

    def __init__(self, engine: Engine) -> None:
        self.failure: BaseException | None = None
        self._engine = engine
        self._asked: queue.SimpleQueue[tuple[Callable[[], Any], Future] | None] = (
            queue.SimpleQueue()
        )
        self._listeners: dict[int, Callable[[Progress | Stopped], None]] = {}
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
        return self._thread.is_alive()

    async def ask[Answer](self, question: Callable[[Engine], Answer]) -> Answer:
        """What a function of the engine gives, called between two steps."""
        if not self.alive:
            raise Stopped
        future: Future = Future()
        self._asked.put((lambda: question(self._engine), future))
        return await asyncio.wrap_future(future)

    @asynccontextmanager
    async def answers(
        self, requests: list[Request]
    ) -> AsyncIterator[AsyncIterator[tuple[int, Progress]]]:
        """The progress of requests, each with its place among them. All are taken or none; what is
        left of them when the block ends is cancelled.

        Raises:
            UserError: one cannot be answered.
            Stopped: the engine ended.
        """
        loop, arrived = asyncio.get_running_loop(), asyncio.Queue()

        def listen(progress: Progress | Stopped) -> None:
            loop.call_soon_threadsafe(arrived.put_nowait, progress)

        def add(engine: Engine) -> list[int]:
            numbers = engine.add_all(requests)
            self._listeners.update(dict.fromkeys(numbers, listen))
            return numbers

        numbers = await self.ask(add)

        async def progress() -> AsyncIterator[tuple[int, Progress]]:
            left = sum(request.sampling.n for request in requests)
            while left:
                one = await arrived.get()
                if isinstance(one, Stopped):
                    raise one
                left -= one.completion is not None
                yield numbers.index(one.request), one

        try:
            yield progress()
        finally:
            self._asked.put((lambda: self._leave(numbers), Future()))

    def _leave(self, numbers: list[int]) -> None:
        for number in numbers:
            self._listeners.pop(number, None)
            self._engine.cancel(number)

    def _run(self) -> None:
        try:
            while self._answer_questions():
                if self._engine.busy:
                    for progress in self._engine.step():
                        if progress.request in self._listeners:
                            self._listeners[progress.request](progress)
        except BaseException as error:  # the thread's last words; those who wait have to hear
            self.failure = error
        for listen in self._listeners.values():
            listen(Stopped())
        self._listeners.clear()
        while not self._asked.empty():
            if (one := self._asked.get()) is not None:
                one[1].set_exception(Stopped())

    def _answer_questions(self) -> bool:
        """Those that came; waits for one if there is nothing else to do. False to end."""
        while not (self._engine.busy and self._asked.empty()):
            one = self._asked.get()
            if one is None:
                return False
            question, future = one
            try:
                future.set_result(question())
            except Exception as error:
                future.set_exception(error)
            if self._asked.empty():
                return True
        return True
