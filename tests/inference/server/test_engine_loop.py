"""The loop of an engine: what goes wrong in one answer is that answer's alone."""

import asyncio
import threading
from contextlib import asynccontextmanager

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.engine import Engine, EngineSettings
from dsv3_plugin.inference.requests import Request, SamplingParameters
from dsv3_plugin.inference.server.engine_loop import EngineLoop, about_engine, in_thread
from dsv3_plugin.inference.server.messages import Busy, Failed, Stopped
from tests.inference.server.serving import CONFIG

POISON = 77
"""A token of which the model makes an error."""


@pytest.fixture
def engine(model):
    return Engine(model, EngineSettings(2**24, most_running=2))


class HeldLoop(EngineLoop):
    """One that begins once it is let."""

    def __init__(self, engine, most_waiting):
        super().__init__(engine, most_waiting)
        self.let = threading.Event()

    def run(self, tell):
        self.let.wait()
        super().run(tell)


@pytest.fixture
def loop(engine):
    return HeldLoop(engine, most_waiting=8)


@pytest.fixture
def worker(engine, loop):
    return in_thread(loop, about_engine(engine, CONFIG))


@pytest.fixture
def poisoned(model):
    """A model that fails on a token, and, once `always` is set, on all."""
    poison = model.embedding.word_embeddings.weight[POISON]
    fails = {"always": False}

    def look(_module, arguments):
        if fails["always"] or (arguments[0] == poison).all(-1).any():
            raise RuntimeError("no more memory")

    handle = model.decoder.layers[0].input_layernorm.register_forward_pre_hook(look)
    yield fails
    handle.remove()


def request(*prompt, tokens=20, n=1):
    return Request(prompt, SamplingParameters(max_tokens=tokens, temperature=0.0, n=n))


@asynccontextmanager
async def held(loop, worker):
    """The block's end is when the engine has ended; it begins when it is let."""
    worker.start()
    try:
        yield
    finally:
        loop.let.set()
        await worker.stop()


def at_once(loop, worker, *requests):
    """What becomes of requests that the engine finds in its line."""

    async def ask():
        async with held(loop, worker):
            asked = [asyncio.ensure_future(tokens_of(worker, one)) for one in requests]
            await asyncio.sleep(0)
            loop.let.set()
            return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(ask())


async def tokens_of(worker, *requests):
    found = [[] for _ in requests]
    async with worker.answers(list(requests)) as arriving:
        async for place, progress in arriving:
            found[place] += [report.token for report in progress.reports]
    return found


def test_who_leaves_before_the_engine_takes_the_request_leaves_nothing(loop, worker, engine):
    async def ask():
        async with held(loop, worker):
            left = asyncio.ensure_future(tokens_of(worker, request(1, tokens=1500)))
            await asyncio.sleep(0)
            left.cancel()
            with pytest.raises(asyncio.CancelledError):
                await left

    asyncio.run(ask())
    assert not engine.busy
    assert worker.state.counters.drawn == worker.state.held == 0


def test_a_step_that_fails_costs_the_answers_in_it_alone(loop, worker, engine, poisoned, caplog):
    asked = [request(5, 6), request(7, POISON), request(8, 9), request(POISON)]
    told = at_once(loop, worker, *asked)  # two run at once: the first two, then the others
    assert [type(one) for one in told] == [Failed] * 4
    assert "no more memory" in caplog.text
    assert engine.scheduler.held == engine.scheduler.running == engine.scheduler.waiting == 0
    (expected,) = Engine(engine.model, EngineSettings(2**24)).run([request(8, 9)])
    (behind,) = engine.run([request(8, 9)])
    assert behind.tokens == expected.tokens


def test_those_that_wait_do_not_notice(loop, worker, poisoned):
    asked = [request(POISON, n=2), request(8, 9), request(5)]
    first, *others = at_once(loop, worker, *asked)
    assert isinstance(first, Failed)
    assert [len(tokens) for ((*tokens,),) in others] == [20, 20]


def test_a_model_that_computes_nothing_any_more_ends_the_loop(loop, worker, poisoned, caplog):
    async def ask():
        poisoned["always"] = True
        async with held(loop, worker):
            loop.let.set()
            with pytest.raises((Failed, Stopped)):
                await tokens_of(worker, request(5))
            while worker.alive:
                await asyncio.sleep(0.01)
            with pytest.raises(Stopped):
                await tokens_of(worker, request(5))

    asyncio.run(ask())
    assert str(loop.failure) == "no more memory"
    assert "The engine has stopped" in caplog.text
    assert worker.failed


def test_no_more_wait_than_may_however_many_ask_at_once(loop, worker):
    told = at_once(loop, worker, *(request(n) for n in range(1, 13)))
    assert [isinstance(one, Busy) for one in told] == [False] * 8 + [True] * 4


def test_what_cannot_be_answered_is_said_to_who_asks(loop, worker):
    async def ask():
        async with held(loop, worker):
            loop.let.set()
            with pytest.raises(UserError, match="Token 100000"):
                await tokens_of(worker, request(1), request(100_000))
            return await tokens_of(worker, request(1, tokens=3))

    ((*tokens,),) = asyncio.run(ask())
    assert len(tokens) == 3


def test_the_state_is_what_the_engine_is_at(loop, worker, engine):
    at_once(loop, worker, request(5, 6, tokens=3), request(7, tokens=4))
    state, counters = worker.state, engine.counters
    assert (state.counters, state.held, state.running, state.waiting) == (counters, 0, 0, 0)
    assert counters.drawn == 7
    assert not worker.failed  # it was asked to end
