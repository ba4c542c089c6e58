"""A server that does what a test wants, and whom a run asks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request as Asked
from starlette.responses import JSONResponse
from starlette.routing import Route

from dsv3_plugin.data.tokenizer import TextTokenizer
from dsv3_plugin.inference.requests import SamplingParameters
from dsv3_plugin.rollouts.endpoint import Endpoint
from dsv3_plugin.rollouts.openai import OpenAi
from dsv3_plugin.web import Patience
from tests.served import served

VOCABULARY, LONGEST = 512, 128
BRIEF = Patience(attempt=300, outage=0)
SAMPLING = SamplingParameters(max_tokens=12)


@dataclass(frozen=True)
class Prompt:
    tokens: tuple[int, ...]


PROMPTS = [Prompt((5, 17, 60)), Prompt(tuple(range(20, 60)))]


def rollouts(endpoint: Endpoint, tokenizer: TextTokenizer, **changes: Any) -> OpenAi:
    settings = {"sampling": SAMPLING, "ends": frozenset()} | changes
    return OpenAi(endpoint, tokenizer=tokenizer, vocabulary=VOCABULARY, longest=LONGEST, **settings)


class Other:
    """A server that does what a test wants."""

    def __init__(self, tokenizer: TextTokenizer, change: Callable[[dict, dict], Any]) -> None:
        self._tokenizer, self._change = tokenizer, change
        self.probed = 0

    async def models(self, _request: Asked) -> JSONResponse:
        return JSONResponse({"data": [{"id": "other"}]})

    async def update(self, request: Asked) -> JSONResponse:
        fails = (await request.json())["model_path"] == "nowhere"
        return JSONResponse({"success": not fails, "message": "no such folder" if fails else ""})

    async def complete(self, request: Asked) -> JSONResponse:
        body = await request.json()
        prompt = body["prompt"]
        if isinstance(prompt, str):
            prompt = self._tokenizer.backend.encode(prompt).ids
        choices = [
            {
                "index": n,
                "text": "x",
                "finish_reason": "length",
                "prompt_token_ids": prompt,
                "token_ids": [9, 3, 9],
                "logprobs": {"token_logprobs": [-0.5, -0.25, -1.0]},
            }
            for n in range(body["n"])
        ]
        reply = {"choices": choices}
        if isinstance(body["prompt"], str) or self.probed < 2:
            self.probed += 1  # at first it is looked at
            change = self._change if self._change.__name__.startswith("probe") else None
        else:
            change = self._change
        said = change(reply, body) if change else None
        return said if isinstance(said, JSONResponse) else JSONResponse(reply)


@contextmanager
def server_that(
    tokenizer: TextTokenizer, change: Callable[[dict, dict], Any]
) -> Iterator[Endpoint]:
    """One whose replies are changed, by what they are to, or are others."""
    server = Other(tokenizer, change)
    routes = [
        Route("/v1/models", server.models),
        Route("/update_weights_from_disk", server.update, methods=["POST"]),
        Route("/v1/completions", server.complete, methods=["POST"]),
    ]
    with (
        served(Starlette(routes=routes)) as address,
        Endpoint(f"{address}/v1/", patience=BRIEF) as opened,
    ):
        yield opened
