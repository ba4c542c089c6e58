"""A reward model over HTTP: what it does wrong costs the attempts that it does it to."""

import asyncio
import json
from collections.abc import Iterator

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from dsv3_plugin.errors import UserError
from dsv3_plugin.rewards.http import RewardModel
from dsv3_plugin.rewards.verdict import Attempt, Weighted, judged
from dsv3_plugin.web import Patience
from tests.served import free_port, served

PATIENT = Patience(attempt=300, outage=300, first_wait=0.01, longest_wait=0.02)
HASTY = Patience(attempt=0.3, outage=0)


class Model:
    """Scores are the responses' lengths, unless a response says otherwise."""

    def __init__(self) -> None:
        self.asked: list[list[dict[str, object]]] = []
        self.keys: list[str | None] = []
        self.failures = 0

    async def score(self, request: Request) -> Response:
        samples = (await request.json())["samples"]
        self.asked.append(samples)
        self.keys.append(request.headers.get("authorization"))
        said = [sample["response"] for sample in samples]
        if self.failures:
            self.failures -= 1
            return PlainTextResponse("starting", 503)
        if "refuse" in said:
            return Response(json.dumps({"error": {"message": "I will not."}}), 422)
        if "crash" in said:
            return PlainTextResponse("Internal Server Error", 500)
        if "chat" in said:
            return PlainTextResponse("What a good answer!")
        if "wait" in said:
            await asyncio.sleep(3600)
        if "drip" in said:
            return StreamingResponse(_drops())
        scores = [{"nan": float("nan"), "null": None}.get(text, len(text)) for text in said]
        if "one more" in said:
            scores.append(1)
        if "alone" in said:
            return Response(json.dumps(scores))
        if "word" in said:
            return Response('{"score": 1}')
        return Response(json.dumps({"scores": scores}))


async def _drops() -> Iterator[str]:
    while True:
        yield " "
        await asyncio.sleep(0.05)


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def address(model: Model) -> Iterator[str]:
    with served(Starlette(routes=[Route("/score", model.score, methods=["POST"])])) as where:
        yield f"{where}/score"


def attempts(*texts: str) -> list[Attempt]:
    return [Attempt(f"prompt {i}", text, i) for i, text in enumerate(texts)]


def test_scores_are_in_the_attempts_order(model: Model, address: str) -> None:
    texts = ["x" * length for length in range(1, 12)]
    with RewardModel(address, key="secret", batch=4, patience=PATIENT) as reward:
        verdicts = reward.judge([Attempt("p", text, {"a": 1}, "<think>") for text in texts])
        assert reward.judge([]) == []
    assert [verdict.value for verdict in verdicts] == [len(text) + 7 for text in texts]
    assert sorted(map(len, model.asked)) == [3, 4, 4]
    first = {"prompt": "p", "response": "<think>x", "answer": {"a": 1}}
    assert first in [samples[0] for samples in model.asked]
    assert set(model.keys) == {"Bearer secret"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("crash", "the service answered with status 500: Internal Server Error"),
        ("chat", "the service answered with what is no JSON"),
        ("refuse", "the service refused with status 422: I will not."),
        ("one more", "the service answered another number of scores"),
        ("word", "the service answered without a list of scores"),
        ("nan", "answered nan, which is no number"),
        ("null", "answered None, which is no number"),
    ],
)
def test_what_fails_costs_one_attempt(address: str, text: str, problem: str) -> None:
    brief = Patience(attempt=300, outage=0)
    with RewardModel(address, batch=8, patience=brief) as reward:
        given = attempts("ab", "c", text, "def", "g", "hi")
        results = judged(given, [Weighted("model", reward.judge, 2.0)])
    assert [one.total for one in results] == [4.0, 2.0, None, 6.0, 2.0, 4.0]
    assert [one.problems for one in results if one.total is None] == [{"model": problem}]


def test_a_bare_list_is_scores_too(address: str) -> None:
    with RewardModel(address, patience=PATIENT) as reward:
        assert [v.value for v in reward.judge(attempts("alone", "ab"))] == [5.0, 2.0]


def test_a_service_that_is_starting_is_asked_again(model: Model, address: str) -> None:
    model.failures = 3
    with RewardModel(address, patience=PATIENT) as reward:
        assert [verdict.value for verdict in reward.judge(attempts("ab"))] == [2.0]
        assert reward.repeated == {"answered with status 503": 3}


@pytest.mark.parametrize("text", ["wait", "drip"])
def test_a_service_that_is_slow_is_not_waited_for(address: str, text: str) -> None:
    with RewardModel(address, patience=HASTY) as reward:
        (verdict,) = reward.judge(attempts(text))
    assert verdict.value is None
    assert verdict.problem == "the service took more than 0.3 s"


def test_all_of_it_is_bounded(address: str) -> None:
    with RewardModel(address, seconds=0.3, patience=PATIENT) as reward:
        verdicts = reward.judge(attempts("wait", "wait"))
    assert [verdict.problem for verdict in verdicts] == ["was not judged within 0.3 s"] * 2


def test_a_service_that_is_down_costs_no_run() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    with RewardModel(address, batch=1, patience=Patience(300, 0.5, 0.01, 0.02)) as reward:
        verdicts = reward.judge(attempts("ab", "cd", "ef"))
        assert {verdict.problem for verdict in verdicts} == {"the service cannot be reached"}
        assert not any(verdict.value for verdict in verdicts)
        before = sum(reward.repeated.values())
        assert before > 0
        reward.judge(attempts("ab"))  # nobody has had an answer for so long: once
        assert sum(reward.repeated.values()) == before


@pytest.mark.parametrize("address", ["reward.model", "ftp://host/x", "http://", "http://a:b"])
def test_what_is_no_address_is_said(address: str) -> None:
    with pytest.raises(UserError, match="is no address"):
        RewardModel(address)
