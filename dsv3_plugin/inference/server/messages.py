"""What an engine and whoever asks it tell each other, wherever either runs.

Questions go to the engine as messages; what came of them comes back as news, one piece a step
however many answers had part in it.
"""

from dataclasses import dataclass
from pathlib import Path

from dsv3_plugin.inference.requests import Progress, Request
from dsv3_plugin.inference.settings import Counters
from dsv3_plugin.recipe.model import ModelConfig


class Stopped(Exception):
    """The engine does not run any more."""


class Failed(Exception):
    """A step failed, and the answer with it."""


class Busy(Exception):
    """More answers would wait than may."""


@dataclass(frozen=True)
class Take:
    """Answer requests, all or none."""

    ticket: int
    requests: list[Request]


@dataclass(frozen=True)
class Leave:
    """What is left of requests is not wanted."""

    ticket: int


@dataclass(frozen=True)
class Load:
    """Compute with the weights of a folder from now on."""

    ticket: int
    folder: str


Message = Take | Leave | Load | None
"""None: end after the step that runs."""


@dataclass(frozen=True)
class Done:
    """What was asked is done: requests are taken, or weights loaded.

    Attributes:
        version: of the weights.
    """

    version: int


Told = Done | tuple[int, Progress] | Exception
"""The second: of a ticket's requests, which."""


@dataclass(frozen=True)
class State:
    """What an engine is at.

    Attributes:
        counters: see there.
        running: sequences that have pages.
        waiting: sequences that have none.
        pages: of the cache.
        held: pages that sequences hold, and no known prompt.
        known: pages of prompts that are known.
        version: of the weights.
    """

    counters: Counters
    running: int
    waiting: int
    pages: int
    held: int
    known: int
    version: int


@dataclass(frozen=True)
class News:
    """What a step brought, and the questions before it.

    Attributes:
        state: behind it.
        told: to whom, by tickets.
    """

    state: State
    told: list[tuple[int, Told]]


@dataclass(frozen=True)
class About:
    """What does not change of an engine.

    Attributes:
        model: whose weights it has.
        positions: of the longest text.
        knows_experts: it records where tokens go.
    """

    model: ModelConfig
    positions: int
    knows_experts: bool


@dataclass(frozen=True)
class EngineOrder:
    """What engine a process is to run.

    Attributes:
        checkpoint: whose weights it has.
        hf: a Hugging Face folder that becomes that checkpoint first; None: it is there.
        cache_bytes: None: see `default_cache`.
        drafts: tokens that multi-token prediction guesses ahead.
        most_running: sequences at once, and as many may wait.
        weights_root: the folder that other weights may be loaded from; None: they may not.
    """

    checkpoint: Path
    hf: Path | None
    cache_bytes: int | None
    drafts: int
    most_running: int
    weights_root: Path | None


@dataclass(frozen=True)
class Ready:
    """The engine is made."""

    about: About
    state: State
