"""The loop that an engine runs in, the other end of `worker`.

It takes what it is asked between steps, and tells what a step brought. A step that fails costs the
answers that it had part in; the loop ends only where the model cannot compute any more.
"""

import dataclasses
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue

from megatron.core.models.gpt.gpt_model import GPTModel

from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.engine import Engine, Progress
from dsv3_plugin.inference.generate import generate
from dsv3_plugin.inference.requests import Request
from dsv3_plugin.inference.server.messages import (
    About,
    Busy,
    Done,
    Failed,
    Leave,
    Load,
    Message,
    News,
    State,
    Take,
    Told,
)
from dsv3_plugin.inference.server.new_weights import NewWeights, take_over
from dsv3_plugin.inference.server.worker import Worker
from dsv3_plugin.recipe.model import ModelConfig

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Asked:
    """A request, as the engine has it.

    Attributes:
        ticket: under which it was asked.
        place: among the requests of that.
        answers: so many.
    """

    ticket: int
    place: int
    answers: int


class EngineLoop:
    """Runs an engine.

    Args:
        engine: nobody else may use it from now on.
        most_waiting: answers that may wait for their turn.
        new_weights: reads weights that take the place of those that it has; None: none do.

    Attributes:
        failure: what ended it, if anything did.
    """

    def __init__(
        self, engine: Engine, most_waiting: int, new_weights: NewWeights | None = None
    ) -> None:
        self.failure: BaseException | None = None
        self._engine, self._most_waiting, self._new_weights = engine, most_waiting, new_weights
        self._questions: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._asked: dict[int, _Asked] = {}
        self._numbers: dict[int, list[int]] = {}
        self._told: list[tuple[int, Told]] = []

    @property
    def state(self) -> State:
        """What the engine is at."""
        engine, scheduler = self._engine, self._engine.scheduler
        counters = dataclasses.replace(
            engine.counters,
            guessed=[*engine.counters.guessed],
            accepted=[*engine.counters.accepted],
        )
        return State(
            counters,
            scheduler.running,
            scheduler.waiting,
            scheduler.pages.count,
            scheduler.held,
            len(scheduler.prefixes),
            engine.version,
        )

    def ask(self, message: Message) -> None:
        """Put a message in the line; any thread may."""
        self._questions.put(None if message is None else partial(self._answer, message))

    def run(self, tell: Callable[[News], None]) -> None:
        """Until it is told to end, or cannot go on.

        Args:
            tell: what comes of it, called on this thread.
        """
        last = self.state
        try:
            while self._answer_questions():
                if self._engine.busy:
                    self._step()
                if self._told or self.state != last:
                    last = self.state
                    tell(self._news())
        except BaseException as error:  # the loop's last words
            self.failure = error
            _LOG.exception("The engine has stopped.")
            tell(self._news())

    def _news(self) -> News:
        """What was not told yet."""
        news, self._told = News(self.state, self._told), []
        return news

    def _answer_questions(self) -> bool:
        """Those that came; waits for one if there is nothing else to do. False to end."""
        while not (self._engine.busy and self._questions.empty()):
            question = self._questions.get()
            if question is None:
                return False
            question()
            if self._questions.empty():
                return True
        return True

    def _answer(self, message: Take | Leave | Load) -> None:
        match message:
            case Take(ticket, requests):
                self._tell_what_comes(ticket, lambda: self._take(ticket, requests))
            case Leave(ticket):
                self._leave(self._numbers.pop(ticket, []))
            case Load():
                threading.Thread(target=self._read, args=(message,), daemon=True).start()

    def _tell_what_comes(self, ticket: int, asked: Callable[[], None]) -> None:
        """Do something, and tell who asked that it is done, or why it is not."""
        try:
            asked()
        except (UserError, Busy) as error:
            self._told.append((ticket, error))
        except Exception:
            _LOG.exception("The engine failed at a request.")
            self._told.append((ticket, Failed()))
        else:
            self._told.append((ticket, Done(self._engine.version)))

    def _take(self, ticket: int, requests: list[Request]) -> None:
        wanted = sum(request.sampling.n for request in requests)
        if self._engine.scheduler.waiting + wanted > self._most_waiting:
            raise Busy
        self._numbers[ticket] = numbers = self._engine.add_all(requests)
        for place, (number, request) in enumerate(zip(numbers, requests, strict=True)):
            self._asked[number] = _Asked(ticket, place, request.sampling.n)

    def _leave(self, numbers: list[int]) -> None:
        for number in numbers:
            self._asked.pop(number, None)
            self._engine.cancel(number)

    def _read(self, load: Load) -> None:
        """Read weights, on a thread of its own: answers go on meanwhile."""
        take: Callable[[], None]
        try:
            take = partial(self._take_over, self._new_weights.read(load.folder))
        except Exception as error:
            take = partial(_raise, error)
        self._questions.put(lambda: self._tell_what_comes(load.ticket, take))

    def _take_over(self, new: GPTModel) -> None:
        take_over(self._engine, new)

    def _step(self) -> None:
        try:
            progress = self._engine.step()
        except Exception:
            _LOG.exception("A step of the engine failed.")
            self._drop_what_failed()
            return
        for one in progress:
            if (asked := self._asked.get(one.request)) is not None:
                self._told.append((asked.ticket, (asked.place, _without_tensors(one))))

    def _drop_what_failed(self) -> None:
        """End all answers that the failed step may have touched, and forget what was computed.

        Raises what the model raises if it computes nothing any more, not even a token of an engine
        that was just made.
        """
        unbegun = self._engine.unbegun()
        self._engine.release_cache()
        for number, asked in list(self._asked.items()):
            if unbegun[number] < asked.answers:
                self._leave([number])
                self._told.append((asked.ticket, Failed()))
        list(generate(self._engine.model, [0], max_new_tokens=1))


def _raise(error: Exception) -> None:
    raise error


def _without_tensors(progress: Progress) -> Progress:
    """Progress whose experts NumPy has, which any process reads."""
    done = progress.completion
    if done is None or done.experts is None:
        return progress
    told = dataclasses.replace(done, experts=done.experts.numpy())
    return dataclasses.replace(progress, completion=told)


class _Thread:
    """The way to an engine in this process; see `worker.Link`."""

    def __init__(self, loop: EngineLoop) -> None:
        self._loop = loop

    def start(self, tell: Callable[[News | None], None]) -> None:
        def run() -> None:
            self._loop.run(tell)
            tell(None)

        self._thread = threading.Thread(target=run, name="engine", daemon=True)
        self._thread.start()

    def send(self, message: Message) -> None:
        self._loop.ask(message)

    def join(self) -> None:
        self._thread.join()


def about_engine(engine: Engine, model: ModelConfig) -> About:
    """What does not change of it."""
    positions, known = engine.model.max_sequence_length, engine.settings.record_experts
    return About(model, positions, known)


def in_thread(loop: EngineLoop, about: About) -> Worker:
    """Asks an engine that runs in a thread of this process."""
    return Worker(_Thread(loop), about, loop.state)
