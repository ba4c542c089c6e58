"""A server that fails at answers that are begun."""

from typing import Any

import pytest
from starlette.responses import JSONResponse

from dsv3_plugin.data.tokenizer import TextTokenizer
from dsv3_plugin.rollouts.rollout import Rollout
from tests.rollouts.other_server import PROMPTS, rollouts, server_that

BEGUN = [*PROMPTS[0].tokens, 9, 3, 9]


def without_ids(reply: dict) -> None:
    del reply["choices"][0]["token_ids"]


def status(number: int) -> Any:
    def answer(_reply: dict) -> JSONResponse:
        return JSONResponse({"error": {"message": "No."}}, status_code=number)

    return answer


@pytest.mark.parametrize(
    ("failing", "problem", "kept"),
    [
        (status(500), "answered with status 500: No", True),
        (without_ids, "came without token ids or log-probabilities", True),
        (status(400), "refuses (status 400): No", False),  # as it would be ever after
    ],
)
def test_they_stay_for_the_next_round_unless_they_are_refused(
    tokenizer: TextTokenizer, failing: Any, problem: str, kept: bool
) -> None:
    """Of two answers of three tokens a round to each of two prompts, those to the first."""
    fails: list[bool] = []

    def change(reply: dict, body: dict) -> Any:
        assert body["max_tokens"] == 3
        return failing(reply) if fails and body["prompt"] == BEGUN else None

    with server_that(tokenizer, change) as endpoint:
        source = rollouts(endpoint, tokenizer)
        first = source.answers(PROMPTS, 2, [0, 1], version=4, most=3)
        fails.append(True)
        second = source.answers(PROMPTS, 2, [2, 3], version=5, begun=first, most=3)
        assert second[0] == (first[0] if kept else [])
        fails.clear()
        if kept:
            third = source.answers(PROMPTS, 2, [4, 5], version=6, begun=second, most=3)
            assert [answer.versions for answer in third[0]] == [(4,) * 3 + (6,) * 3] * 2
    assert second[1] == [
        Rollout(
            PROMPTS[1].tokens, (9, 3, 9) * 2, (-0.5, -0.25, -1.0) * 2, "unfinished",
            (4,) * 3 + (5,) * 3,
        )
    ] * 2  # fmt: skip
    assert source.put_off == ({problem: 2} if kept else {})
    assert source.lost == ({} if kept else {problem: 2})
