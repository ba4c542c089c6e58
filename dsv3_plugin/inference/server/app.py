"""The routes of the server: what comes in is checked, asked of the engine, and told."""

import asyncio
import contextlib
import dataclasses
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from dsv3_plugin.data.chat.conversation import Conversation
from dsv3_plugin.errors import UserError
from dsv3_plugin.inference import requests as engine_requests
from dsv3_plugin.inference.engine import Engine, Progress
from dsv3_plugin.inference.requests import SamplingParameters
from dsv3_plugin.inference.server.metrics import registry_of
from dsv3_plugin.inference.server.protocol import ChatRequest, CompletionRequest, read
from dsv3_plugin.inference.server.replies import Choice, Json, Replies
from dsv3_plugin.inference.server.thinking import Thinking
from dsv3_plugin.inference.server.worker import EngineThread, Stopped
from dsv3_plugin.inference.text import TextStream

_CLIENT_LEFT = 499
"""nginx's code for a reply that nobody waits for."""


@dataclass(frozen=True)
class Words:
    """A tokenizer, as the server uses it.

    Attributes:
        encode: token ids of a text, with those that every text begins with, or without.
        decode: text of token ids.
        prompt: the text that asks for a conversation's next turn.
        ends: tokens that end an answer.
    """

    encode: Callable[[str, bool], list[int]]
    decode: Callable[[Sequence[int]], str]
    prompt: Callable[[Conversation], str]
    ends: frozenset[int]


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them, may ask.

    Attributes:
        body_bytes: of a request's body.
        waiting: answers that wait for their turn; more are refused for the moment.
    """

    body_bytes: int
    waiting: int


class Refusal(Exception):
    """A request that is not served, with its status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Server:
    """Serves a model under a name.

    Args:
        name: of the model.
        engine: that answers; the server's thread has it from now on.
        words: its tokenizer.
        limits: see there.
        key: what clients have to know; None: nothing.
    """

    def __init__(
        self, name: str, engine: Engine, words: Words, limits: Limits, key: str | None
    ) -> None:
        self.name, self.words, self.limits = name, words, limits
        self._key = key
        self._engine, self._worker = engine, EngineThread(engine)
        self._registry = registry_of(engine)

    def application(self) -> Starlette:
        """What a web server runs."""
        routes = [
            Route("/v1/completions", self._guarded(self.completions), methods=["POST"]),
            Route("/v1/chat/completions", self._guarded(self.chat), methods=["POST"]),
            Route("/v1/models", self._guarded(self.models)),
            Route("/metrics", self._guarded(self.metrics)),
            Route("/health", self.health),
        ]
        return Starlette(
            routes=routes,
            lifespan=self._running,
            exception_handlers={HTTPException: _unknown_route, Exception: _fault},
        )

    @contextlib.asynccontextmanager
    async def _running(self, _app: Starlette) -> AsyncIterator[None]:
        self._worker.start()
        try:
            yield
        finally:
            await asyncio.to_thread(self._worker.stop)

    def _guarded(self, handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def guarded(request: Request) -> Response:
            try:
                self._require_key(request)
                return await handler(request)
            except UserError as error:
                return _error(400, str(error))
            except Refusal as refusal:
                return _error(refusal.status, str(refusal))
            except Stopped:
                return _error(503, "The engine has stopped.")
            except ClientDisconnect:
                return Response(status_code=_CLIENT_LEFT)

        return guarded

    def _require_key(self, request: Request) -> None:
        sent = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self._key is not None and not hmac.compare_digest(sent.encode(), self._key.encode()):
            raise Refusal(401, "The API key is missing or wrong.")

    async def health(self, _request: Request) -> Response:
        """Whether the engine runs."""
        alive = self._worker.alive
        return JSONResponse({"status": "ok" if alive else "stopped"}, 200 if alive else 503)

    async def models(self, _request: Request) -> Response:
        """The one model."""
        model = {"id": self.name, "object": "model", "created": 0, "owned_by": "dsv3_plugin"}
        return JSONResponse({"object": "list", "data": [model]})

    async def metrics(self, _request: Request) -> Response:
        """What the engine does."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    async def completions(self, request: Request) -> Response:
        """Continue texts."""
        body = read(CompletionRequest, await self._json(request))
        self._require_model(body.model)
        sampling = self._ending(body.sampling())
        prompts = [
            self.words.encode(prompt, True) if isinstance(prompt, str) else prompt
            for prompt in body.prompts()
        ]
        replies = Replies(
            "text_completion",
            self.name,
            lambda token: self.words.decode([token]),
            log_probs=body.logprobs is not None,
            echo=self.words.decode if body.echo else None,
            token_ids=body.return_token_ids,
        )
        return await self._answer(request, body, replies, prompts, sampling, lambda: None)

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        body = read(ChatRequest, await self._json(request))
        self._require_model(body.model)
        text = self.words.prompt(Conversation(body.messages, body.tools or None))
        prompt = self.words.encode(text, False)
        room = self._engine.model.max_sequence_length - len(prompt)
        sampling = self._ending(body.sampling(room))
        replies = Replies(
            "chat.completion",
            self.name,
            lambda token: self.words.decode([token]),
            log_probs=body.logprobs,
            token_ids=body.return_token_ids,
        )
        apart = partial(Thinking.behind, text)
        return await self._answer(request, body, replies, [prompt], sampling, apart)

    async def _json(self, request: Request) -> Any:
        """The body, no larger than allowed."""
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > self.limits.body_bytes:
                raise Refusal(413, f"The body is larger than {self.limits.body_bytes} bytes.")
            parts.append(part)
        try:
            return json.loads(b"".join(parts))
        except (ValueError, RecursionError):
            raise UserError("The body is not JSON.") from None

    def _require_model(self, name: str) -> None:
        if name != self.name:
            raise Refusal(404, f"There is no model {name!r} here; there is {self.name!r}.")

    def _ending(self, sampling: SamplingParameters) -> SamplingParameters:
        return dataclasses.replace(sampling, stop_tokens=self.words.ends)

    async def _answer(
        self,
        request: Request,
        body: CompletionRequest | ChatRequest,
        replies: Replies,
        prompts: list[list[int]],
        sampling: SamplingParameters,
        thinking: Callable[[], Thinking | None],
    ) -> Response:
        if not prompts:
            raise UserError("prompt: there is none.")
        if self._engine.scheduler.waiting + len(prompts) * sampling.n > self.limits.waiting:
            raise Refusal(429, "Too many answers are waited for already: ask again later.")
        choices = [
            Choice(
                number * sampling.n + answer,
                prompt,
                TextStream(self.words.decode, sampling.stop, sampling.stop_tokens),
                thinking(),
            )
            for number, prompt in enumerate(prompts)
            for answer in range(sampling.n)
        ]
        asked = [engine_requests.Request(tuple(prompt), sampling) for prompt in prompts]
        stack = contextlib.AsyncExitStack()
        arriving = await stack.enter_async_context(self._worker.answers(asked))
        if body.stream:
            told = body.stream_options is not None and body.stream_options.include_usage
            return _Stream(_pieces(arriving, choices, sampling.n, replies, told), stack)
        async with stack:
            await _unless_left(request, _collect(arriving, choices, sampling.n))
        return JSONResponse(replies.whole(choices))


async def _collect(
    arriving: AsyncIterator[tuple[int, Progress]], choices: list[Choice], n: int
) -> None:
    async for place, progress in arriving:
        choices[place * n + progress.number].add(progress.reports, progress.completion)


async def _pieces(
    arriving: AsyncIterator[tuple[int, Progress]],
    choices: list[Choice],
    n: int,
    replies: Replies,
    with_usage: bool,
) -> AsyncIterator[str]:
    """Events of a stream, as the choices grow."""
    if replies.kind == "chat.completion":
        for choice in choices:
            yield _event(replies.first_piece(choice))
    try:
        async for place, progress in arriving:
            choice = choices[place * n + progress.number]
            thought, said = choice.add(progress.reports, progress.completion)
            yield _event(replies.piece(choice, thought, said, progress.reports))
    except Stopped:
        yield _event(_sentence("The engine has stopped.", 503))
        return
    if with_usage:
        yield _event(replies.last_piece(choices))
    yield "data: [DONE]\n\n"


class _Stream(StreamingResponse):
    """Server-sent events; whether they were read to the end or not, the rest is cancelled then."""

    def __init__(self, pieces: AsyncIterator[str], stack: contextlib.AsyncExitStack) -> None:
        super().__init__(pieces, media_type="text/event-stream")
        self._stack = stack

    async def __call__(self, *connection: Any) -> None:
        async with self._stack:
            await super().__call__(*connection)


async def _unless_left(request: Request, work: Awaitable[None]) -> None:
    """Do something unless the client goes away before it is done."""
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(request.receive())  # behind the body nothing else can come
    try:
        await asyncio.wait([doing, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientDisconnect
        await doing
    finally:
        doing.cancel()
        leaving.cancel()


def _event(told: Json) -> str:
    return f"data: {json.dumps(told)}\n\n"


def _sentence(sentence: str, status: int) -> Json:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": sentence, "type": kind, "param": None, "code": status}}


def _error(status: int, sentence: str) -> Response:
    return JSONResponse(_sentence(sentence, status), status)


async def _unknown_route(_request: Request, error: HTTPException) -> Response:
    return _error(error.status_code, f"{error.detail}.")


async def _fault(_request: Request, _error_: Exception) -> Response:
    return _error(500, "The server failed; its log says how.")
