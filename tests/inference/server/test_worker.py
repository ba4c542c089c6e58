"""The engine's thread: what goes wrong in one answer is that answer's alone."""

import asyncio
import threading

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.engine import Engine, EngineSettings
from dsv3_plugin.inference.requests import Request, SamplingParameters
from dsv3_plugin.inference.server.worker import Busy, EngineThread, Failed, Stopped

POISON = 77
"""A token of which the model makes an error."""


@pytest.fixture
def engine(model):
    return Engine(model, EngineSettings(2**24, most_running=2))


@pytest.fixture
def worker(engine):
    begun = EngineThread(engine, most_waiting=8)
    begun.start()
    yield begun
    begun.stop()


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


async def at_once(worker, *requests):
    """What becomes of requests that come while the engine does something else."""
    held = threading.Event()
    busy = asyncio.ensure_future(worker.ask(lambda _: held.wait()))
    await asyncio.sleep(0)
    asked = [asyncio.ensure_future(tokens_of(worker, one)) for one in requests]
    await asyncio.sleep(0)
    held.set()
    await busy
    return await asyncio.gather(*asked, return_exceptions=True)


async def tokens_of(worker, *requests):
    found = [[] for _ in requests]
    async with worker.answers(list(requests)) as arriving:
        async for place, progress in arriving:
            found[place] += [report.token for report in progress.reports]
    return found


def test_a_question_that_nobody_waits_for_any_more_is_passed_over(worker):
    async def ask():
        held = threading.Event()
        busy = asyncio.ensure_future(worker.ask(lambda _: held.wait()))
        left = asyncio.ensure_future(worker.ask(lambda _: pytest.fail("was asked")))
        await asyncio.sleep(0)  # both are asked
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        held.set()
        await busy
        return await worker.ask(lambda engine: engine.busy)

    assert asyncio.run(ask()) is False
    assert worker.alive


def test_who_leaves_while_the_engine_takes_the_request_leaves_nothing(worker, engine):
    async def ask():
        held = threading.Event()
        busy = asyncio.ensure_future(worker.ask(lambda _: held.wait()))
        await asyncio.sleep(0)
        left = asyncio.ensure_future(tokens_of(worker, request(1, tokens=1500)))
        await asyncio.sleep(0)
        held.set()  # the request is taken, and whoever made it has not heard of it
        while not engine.busy:
            pass
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        await busy
        return await worker.ask(lambda engine: engine.busy)

    assert asyncio.run(ask()) is False


def test_a_step_that_fails_costs_the_answers_in_it_alone(worker, engine, poisoned, caplog):
    async def ask():
        asked = [request(5, 6), request(7, POISON), request(8, 9), request(POISON)]
        told = await at_once(worker, *asked)  # two run at once: the first two, then the others
        return told, await tokens_of(worker, request(8, 9))

    told, ((*alone,),) = asyncio.run(ask())
    assert [type(one) for one in told] == [Failed] * 4
    (expected,) = Engine(engine.model, EngineSettings(2**24)).run([request(8, 9)])
    assert alone == expected.tokens
    assert "no more memory" in caplog.text
    assert engine.scheduler.held == engine.scheduler.running == engine.scheduler.waiting == 0


def test_those_that_wait_do_not_notice(worker, poisoned):
    asked = [request(POISON, n=2), request(8, 9), request(5)]
    first, *others = asyncio.run(at_once(worker, *asked))
    assert isinstance(first, Failed)
    assert [len(tokens) for ((*tokens,),) in others] == [20, 20]


def test_a_model_that_computes_nothing_any_more_ends_the_thread(worker, poisoned, caplog):
    async def ask():
        poisoned["always"] = True
        with pytest.raises((Failed, Stopped)):
            await tokens_of(worker, request(5))
        while worker.alive:
            await asyncio.sleep(0.01)
        with pytest.raises(Stopped):
            await tokens_of(worker, request(5))

    asyncio.run(ask())
    assert str(worker.failure) == "no more memory"
    assert "The engine has stopped" in caplog.text


def test_no_more_wait_than_may_however_many_ask_at_once(worker):
    told = asyncio.run(at_once(worker, *(request(n) for n in range(1, 13))))
    assert [isinstance(one, Busy) for one in told] == [False] * 8 + [True] * 4


def test_what_cannot_be_answered_is_said_to_who_asks(worker):
    async def ask():
        with pytest.raises(UserError, match="Token 100000"):
            await tokens_of(worker, request(1), request(100_000))
        return await tokens_of(worker, request(1, tokens=3))

    ((*tokens,),) = asyncio.run(ask())
    assert len(tokens) == 3
