"""A process beside this one that encodes: it has the encoder from its start on."""

import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Protocol

from dsv3_plugin.data.tokenizer import without_threads
from dsv3_plugin.errors import UserError


class Encodes[Given, Made](Protocol):
    """What travels to the process."""

    def encode(self, batch: Sequence[Given]) -> list[Made]: ...


class EncodingProcess[Given, Made]:
    """Encodes one batch after another, for whoever asks; one at a time.

    Args:
        encoder: can be pickled.
    """

    def __init__(self, encoder: Encodes[Given, Made]) -> None:
        # Spawned, not forked: the calling process may hold threads of torch or of a communicator.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_answer, args=(encoder, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def encode(self, batch: Sequence[Given]) -> list[Made]:
        """What the encoder makes of a batch.

        Raises:
            UserError: the process is there no more.
            Exception: what the encoder raised.
        """
        try:
            self._pipe.send(batch)
            answer = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise UserError(
                "a process that encodes documents was killed, most likely for memory: use fewer "
                "workers."
            ) from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def end(self) -> None:
        """Have it end, once it has answered."""
        self._pipe.close()
        self._process.join()


def _answer[Given, Made](encoder: Encodes[Given, Made], pipe: Connection) -> None:
    without_threads()
    while True:
        try:
            batch = pipe.recv()
        except EOFError:  # nobody asks any more
            return
        try:
            made: list[Made] | Exception = encoder.encode(batch)
        except Exception as error:
            made = error
        pipe.send(made)
