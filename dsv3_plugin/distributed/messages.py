"""What a rank tells the person who started the run, apart from its log.

A rank that `dsv3 train` started writes each word as a line of JSON into a pipe that its parent
reads: it arrives even when the disk that holds the log is full. A rank that torchrun or srun
started writes plain lines to the standard error it was given.
"""

import contextlib
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from typing import Literal, TextIO

Kind = Literal["note", "refused", "crashed"]
"""note: a sentence meanwhile; refused: the sentence of a UserError; crashed: our own fault."""

PIPE = "DSV3_WORDS_FD"
"""Environment variable with the descriptor of the pipe's end that a rank writes into."""

_LONGEST = 3000
"""Bytes of a text; a line below PIPE_BUF (4096) is written whole or not at all."""

_terminal: TextIO | None = None


@dataclass(frozen=True)
class Word:
    """One thing a rank said. `time` is the machine's monotonic clock, in seconds."""

    rank: int
    kind: Kind
    text: str
    time: float


def say(kind: Kind, text: str) -> None:
    """Tell the person one sentence. Never fails: nobody may be there to hear it."""
    rank = int(os.environ.get("RANK", "0"))
    with contextlib.suppress(OSError, ValueError):
        if PIPE in os.environ:
            short = text.encode()[:_LONGEST].decode(errors="ignore")
            line = json.dumps(asdict(Word(rank, kind, short, time.monotonic())), ensure_ascii=False)
            os.write(int(os.environ[PIPE]), line.encode() + b"\n")
        else:
            prefix = "" if kind == "note" else "dsv3: "
            print(f"{prefix}{text}", file=_terminal or sys.stderr, flush=True)


def speak_on(terminal: TextIO) -> None:
    """Say words there from now on (standard error is about to become a log)."""
    global _terminal
    _terminal = terminal


def has_log() -> bool:
    """Whether what this process prints lands in a log, and not before the person's eyes."""
    return PIPE in os.environ or _terminal is not None


class Ear:
    """The parent's end of the pipe."""

    def __init__(self) -> None:
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._rest = b""
        self.heard: list[Word] = []
        """Everything said so far."""

    def close_writer(self) -> None:
        """To be called once every rank has its own copy of `writer`."""
        os.close(self.writer)

    def listen(self) -> list[Word]:
        """What was said since the last call."""
        with contextlib.suppress(BlockingIOError):
            while received := os.read(self._reader, 65536):
                self._rest += received
        *lines, self._rest = self._rest.split(b"\n")
        new = [Word(**json.loads(line)) for line in lines]
        self.heard += new
        return new

    def close(self) -> None:
        """Let go of the pipe."""
        os.close(self._reader)
