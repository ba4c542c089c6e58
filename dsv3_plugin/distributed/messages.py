"""What a rank tells the person who started the run, apart from its log.

A rank that `dsv3 train` started writes each message as a line of JSON into a pipe that its parent
reads (`Inbox`): it arrives even when the disk that holds the log is full. A rank that torchrun or
srun started writes plain lines to the standard error it was given. No torch here.
"""

import contextlib
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from typing import Literal, TextIO

from dsv3_plugin.errors import printable

Kind = Literal["note", "refused", "crashed"]
"""note: a sentence meanwhile; refused: the sentence of a UserError; crashed: our own fault."""

PIPE = "DSV3_MESSAGES_FD"
"""Environment variable with the descriptor of the pipe's end that a rank writes into."""

_LONGEST = 3000
"""Bytes of a text; a line below PIPE_BUF (4096) is written whole or not at all."""


@dataclass(frozen=True)
class Message:
    """One thing that a rank told. `time` is the machine's monotonic clock, in seconds."""

    rank: int
    kind: Kind
    text: str
    time: float


class Outbox:
    """A rank's way to the person; made once, and passed to whoever has something to tell."""

    def __init__(self) -> None:
        self._terminal: TextIO | None = None

    @property
    def has_parent(self) -> bool:
        """Whether `dsv3 train` started this rank and reads what it tells."""
        return PIPE in os.environ

    @property
    def has_log(self) -> bool:
        """Whether what this process prints lands in a log, and not before the person's eyes."""
        return self.has_parent or self._terminal is not None

    def write_to(self, terminal: TextIO) -> None:
        """Tell things there from now on (standard error is about to become a log)."""
        self._terminal = terminal

    def send(self, kind: Kind, text: str) -> None:
        """Tell the person one sentence. Never fails: nobody may be there to read it."""
        with contextlib.suppress(OSError, ValueError):
            if self.has_parent:
                short = printable(text).encode()[:_LONGEST].decode(errors="ignore")
                message = Message(int(os.environ["RANK"]), kind, short, time.monotonic())
                line = json.dumps(asdict(message), ensure_ascii=False)
                os.write(int(os.environ[PIPE]), line.encode() + b"\n")
            else:
                prefix = "" if kind == "note" else "dsv3: "
                print(f"{prefix}{printable(text)}", file=self._terminal or sys.stderr, flush=True)


class Inbox:
    """The parent's end of the pipe."""

    def __init__(self) -> None:
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._rest = b""
        self.received: list[Message] = []
        """Everything told so far."""

    def close_writer(self) -> None:
        """To be called once every rank has its own copy of `writer`."""
        os.close(self.writer)

    def receive(self) -> list[Message]:
        """What was told since the last call."""
        with contextlib.suppress(BlockingIOError):
            while read := os.read(self._reader, 65536):
                self._rest += read
        *lines, self._rest = self._rest.split(b"\n")
        new = [Message(**json.loads(line)) for line in lines]
        self.received += new
        return new

    def close(self) -> None:
        """Let go of the pipe."""
        os.close(self._reader)
