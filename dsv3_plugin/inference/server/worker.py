"""An engine, asked from an event loop; it runs elsewhere, in a process or in a thread of its own.

The other end is `engine_loop`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, Protocol

from dsv3_plugin.inference.requests import Progress, Request
from dsv3_plugin.inference.server.messages import (
    About,
    Done,
    Leave,
    Load,
    Message,
    News,
    State,
    Stopped,
    Take,
    Told,
)


class Link(Protocol):
    """The way to an engine."""

    def start(self, tell: Callable[[News | None], None]) -> None:
        """Have news told, on some thread; None when the engine has ended."""

    def send(self, message: Message) -> None:
        """Hand a message on, without waiting."""

    def join(self) -> None:
        """Wait for the engine's end."""


class Worker:
    """Asks an engine, for all who wait in one event loop.

    Args:
        link: to the engine; nobody else may use it.
        about: the engine.
        state: it begins in.

    Attributes:
        about: the engine.
        state: as it was last heard of.
        failed: the engine ended by itself, unasked.
    """

    def __init__(self, link: Link, about: About, state: State) -> None:
        self.about, self.state = about, state
        self._link, self._tickets = link, count()
        self._arriving: dict[int, asyncio.Queue[Told]] = {}
        self._runs = self._asked_to_end = self.failed = False

    def start(self) -> None:
        """Begin, in the event loop that runs."""
        self._runs, loop = True, asyncio.get_running_loop()

        def tell(news: News | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
                loop.call_soon_threadsafe(self._hear, news)

        self._link.start(tell)

    async def stop(self) -> None:
        """End after the step that runs; those who wait are told."""
        self._asked_to_end = True
        self._link.send(None)
        await asyncio.to_thread(self._link.join)

    @property
    def alive(self) -> bool:
        """Whether the engine runs."""
        return self._runs

    async def load(self, folder: str) -> int:
        """Have the engine compute with the weights of a folder: their version.

        Raises:
            UserError: they cannot be loaded.
            Stopped: the engine ended.
        """
        with self._ticket() as (ticket, arriving):
            self._link.send(Load(ticket, folder))
            return (await self._done(arriving)).version

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

        async def progress() -> AsyncIterator[tuple[int, Progress]]:
            left = sum(request.sampling.n for request in requests)
            while left:
                told = await arriving.get()
                if isinstance(told, Exception):
                    raise told
                left -= told[1].completion is not None
                yield told

        with self._ticket() as (ticket, arriving):
            self._link.send(Take(ticket, requests))
            try:
                await self._done(arriving)
                yield progress()
            finally:
                self._link.send(Leave(ticket))

    @contextlib.contextmanager
    def _ticket(self) -> Any:
        """A number to ask under, and what will be told of it."""
        if not self._runs:
            raise Stopped
        ticket, arriving = next(self._tickets), asyncio.Queue()
        self._arriving[ticket] = arriving
        try:
            yield ticket, arriving
        finally:
            del self._arriving[ticket]

    @staticmethod
    async def _done(arriving: asyncio.Queue[Told]) -> Done:
        told = await arriving.get()
        if isinstance(told, Exception):
            raise told
        return told

    def _hear(self, news: News | None) -> None:
        if news is None:
            self._runs, self.failed = False, not self._asked_to_end
            for arriving in self._arriving.values():
                arriving.put_nowait(Stopped())
            return
        self.state = news.state
        for ticket, told in news.told:
            if (arriving := self._arriving.get(ticket)) is not None:
                arriving.put_nowait(told)
