"""A recipe's rewards, with the time that each has."""

import asyncio
from contextlib import ExitStack

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dsv3_plugin.recipe.rl import Reward
from dsv3_plugin.rewards import by_name, sandbox
from dsv3_plugin.rewards.verdict import Attempt
from dsv3_plugin.rewards.workers import Workers
from dsv3_plugin.rollouts.judging import Judging
from tests.served import served


async def _hangs(request: Request) -> Response:
    await asyncio.sleep(3600)


def test_a_reward_model_has_the_seconds_of_its_recipe() -> None:
    with served(Starlette(routes=[Route("/", _hangs, methods=["POST"])])) as address:
        rewards = {"style": Reward(address=f"{address}/", seconds=0.2)}
        with Judging(rewards, 8) as judging:
            [found] = judging.judge([Attempt("a", "b")], [("style",)])
    assert found.total is None
    assert "0.2 s" in found.problems["style"]


@pytest.mark.parametrize(
    ("name", "given", "of_tests", "of_a_worker"),
    [("code", None, 30, 45), ("code", 60, 60, 75), ("accuracy", None, None, 15),
     ("accuracy", 3, None, 3)],
)  # fmt: skip
def test_a_worker_has_more_time_than_the_tests_it_runs(
    monkeypatch, name: str, given: float | None, of_tests: float | None, of_a_worker: float
) -> None:
    """Else a slow program would be one that could not be judged."""
    seen: list[float] = []
    scores = []

    class Noted(Workers):
        def __init__(self, processes: int, seconds: float) -> None:
            seen.append(seconds)

        def close(self) -> None:
            pass

        def judge_by(self, score):
            scores.append(score)

    monkeypatch.setattr(by_name, "Workers", Noted)
    monkeypatch.setattr(sandbox, "check", lambda: None)
    with ExitStack() as stack:
        by_name.judge_of(name, given, stack)
    assert seen == [of_a_worker]
    if of_tests is not None:
        assert scores[0].keywords == {"seconds": of_tests}
