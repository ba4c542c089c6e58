"""The engine in a process of its own: what Python does there for HTTP would hold up its steps.

The other end of this one is `engine_host`, which alone imports torch, so that the process is begun
at once.
"""

import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.server.messages import EngineOrder, Message, News, Ready
from dsv3_plugin.inference.server.worker import Worker

_LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def engine_process(order: EngineOrder) -> Iterator[Callable[[], Worker]]:
    """An engine that is being made in the block, behind which its process has ended.

    Yields:
        What waits until it is made; it raises UserError where it cannot be.
    """
    context = multiprocessing.get_context("spawn")  # torch and threads want a process of their own
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(order, theirs), name="engine")
    process.start()
    theirs.close()
    try:
        yield lambda: _made(process, ours)
    finally:
        process.kill()  # should it not have been told to end, or load weights yet
        process.join()
        ours.close()


def _made(process: BaseProcess, connection: Connection) -> Worker:
    try:
        first = pickle.loads(connection.recv_bytes())
    except (EOFError, OSError):
        process.join()
        raise UserError(
            f"The engine's process {_how(process)} before it was ready; what it says stands above."
        ) from None
    if isinstance(first, UserError):
        raise first
    return Worker(_Process(process, connection), first.about, first.state)


def _how(process: BaseProcess) -> str:
    """How a process ended."""
    code = process.exitcode
    if code is not None and code < 0:
        return f"was ended by {signal.Signals(-code).name} (for want of memory, it may be)"
    return f"ended with exit code {code}"


class _Process:
    """The way to an engine in another process; see `worker.Link`."""

    def __init__(self, process: BaseProcess, connection: Connection) -> None:
        self._process, self._connection = process, connection
        self._ends = False

    def start(self, tell: Callable[[News | None], None]) -> None:
        def hear() -> None:
            for news in _received(self._connection):
                tell(news)
            self._process.join()
            if not self._ends:
                _LOG.error("The engine's process %s.", _how(self._process))
            tell(None)

        self._thread = threading.Thread(target=hear, name="news of the engine", daemon=True)
        self._thread.start()

    def send(self, message: Message) -> None:
        self._ends |= message is None
        with contextlib.suppress(OSError):  # it has ended, as will be heard
            self._connection.send_bytes(pickle.dumps(message))

    def join(self) -> None:
        self._thread.join()


def _received(connection: Connection) -> Iterator[News | Message]:
    """What comes, until the other end is closed."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            yield pickle.loads(connection.recv_bytes())


def _run(order: EngineOrder, connection: Connection) -> None:
    """What the process does: make an engine, say so, and answer until it is told to end."""
    for number in (signal.SIGINT, signal.SIGTERM):  # whoever serves is told as well, and ends this
        signal.signal(number, signal.SIG_IGN)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")

    def say(what: Ready | UserError | News) -> None:
        with contextlib.suppress(BrokenPipeError):  # whoever serves was killed, and soon this is
            connection.send_bytes(pickle.dumps(what))

    threading.Thread(target=_end_with_parent, daemon=True).start()
    from dsv3_plugin.distributed.world import single_process

    try:
        with single_process():  # which makes a CPU host before Megatron is imported
            from dsv3_plugin.inference.server.engine_host import ordered

            loop, about = ordered(order)
            say(Ready(about, loop.state))

            def hear() -> None:
                for message in _received(connection):
                    loop.ask(message)

            threading.Thread(target=hear, daemon=True).start()
            loop.run(say)
            if loop.failure is not None:
                sys.exit(1)
    except UserError as error:
        say(error)


def _end_with_parent() -> None:
    """End at once when whoever serves is killed, whatever is being computed."""
    multiprocessing.parent_process().join()
    os._exit(1)
