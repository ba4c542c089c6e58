"""The routes of the server: what comes in is checked, asked of the engine, and told."""

import asyncio
import contextlib
import dataclasses
import hmac
import math
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dsv3_plugin.data.chat.conversation import Conversation
from dsv3_plugin.errors import UserError
from dsv3_plugin.inference import requests as engine_requests
from dsv3_plugin.inference.requests import SamplingParameters, WrongField
from dsv3_plugin.inference.server.growing import Stream, growing, pieces, to_the_end, unless_left
from dsv3_plugin.inference.server.limits import Limits, Rate
from dsv3_plugin.inference.server.messages import Busy, Failed, Stopped
from dsv3_plugin.inference.server.metrics import registry_of
from dsv3_plugin.inference.server.protocol import (
    ChatRequest,
    CompletionRequest,
    WeightsBegin,
    WeightsFinish,
    WeightsRequest,
)
from dsv3_plugin.inference.server.pushed_weights import PushedWeights
from dsv3_plugin.inference.server.reading import bucket_number, json_of, read
from dsv3_plugin.inference.server.refusals import (
    Refusal,
    cut_short,
    fault,
    refusal_of,
    reply,
    unknown_route,
)
from dsv3_plugin.inference.server.replies import Choice, Replies
from dsv3_plugin.inference.server.thinking import Thinking
from dsv3_plugin.inference.server.words import Words
from dsv3_plugin.inference.server.worker import Worker
from dsv3_plugin.inference.text import TextStream

_CLIENT_LEFT = 499
"""nginx's code for a reply that nobody waits for."""


class Server:
    """Serves a model under a name.

    Args:
        name: of the model.
        worker: asks the engine that answers; it begins with the server, and ends with it.
        words: its tokenizer.
        limits: see there.
        key: what clients have to know; None: nothing.
        pushed: gathers weights that take the place of those that are served; None: none do.
    """

    def __init__(
        self,
        name: str,
        worker: Worker,
        words: Words,
        limits: Limits,
        key: str | None,
        pushed: PushedWeights | None = None,
    ) -> None:
        self.name, self.words, self.limits = name, words, limits
        self._key = key
        self._worker, self._registry = worker, registry_of(worker)
        self._rate = None if limits.per_minute is None else Rate(limits.per_minute)
        self._reading = 0
        self._pushed, self._loading = pushed, asyncio.Lock()
        self._finished: tuple[str, int] | None = None

    def application(self) -> Starlette:
        """What a web server runs."""
        routes = [
            Route("/v1/completions", self._guarded(self.completions), methods=["POST"]),
            Route("/v1/chat/completions", self._guarded(self.chat), methods=["POST"]),
            Route("/v1/models", self._guarded(self.models)),
            Route("/v1/weights", self._guarded(self.weights), methods=["GET", "POST"]),
            Route("/v1/weights/begin", self._guarded(self.begin_weights), methods=["POST"]),
            Route(
                "/v1/weights/{update}/finish", self._guarded(self.finish_weights), methods=["POST"]
            ),
            Route("/v1/weights/{update}/{number}", self._guarded(self.bucket), methods=["POST"]),
            Route("/metrics", self._guarded(self.metrics)),
            Route("/health", self.health),
        ]
        return Starlette(
            routes=routes,
            lifespan=self._running,
            exception_handlers={HTTPException: unknown_route, Exception: fault},
        )

    @contextlib.asynccontextmanager
    async def _running(self, _app: Starlette) -> AsyncIterator[None]:
        self._worker.start()
        try:
            yield
        finally:
            await self._worker.stop()
            if self._pushed is not None:
                self._pushed.drop()

    def _guarded(self, handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def guarded(request: Request) -> Response:
            try:
                self._require_key(request)
                return await handler(request)
            except (UserError, Busy, Failed, Stopped, Refusal) as error:
                return reply(refusal_of(error))
            except ClientDisconnect:
                return Response(status_code=_CLIENT_LEFT)
            except asyncio.CancelledError:  # by uvicorn, whose patience ended with what was asked
                return reply(cut_short())

        return guarded

    def _require_key(self, request: Request) -> None:
        sent = request.headers.get("authorization", "").removeprefix("Bearer ")
        # Headers are bytes, which starlette reads as Latin-1.
        known = self._key is None or hmac.compare_digest(sent.encode("latin-1"), self._key.encode())
        if not known:
            raise Refusal(401, "The API key is missing or wrong.")

    def _require_turn(self, request: Request) -> None:
        """Count a request against its client's in a minute."""
        if self._rate is None or request.client is None:
            return
        wait = self._rate.seconds_to_wait(request.client.host)
        if wait:
            raise Refusal(
                429,
                f"More than {self.limits.per_minute} requests in a minute: ask again in "
                f"{math.ceil(wait)} s.",
                wait,
            )

    async def health(self, _request: Request) -> Response:
        """Whether the engine runs."""
        alive = self._worker.alive
        return JSONResponse({"status": "ok" if alive else "stopped"}, 200 if alive else 503)

    async def models(self, _request: Request) -> Response:
        """The one model."""
        model = {"id": self.name, "object": "model", "created": 0, "owned_by": "dsv3_plugin"}
        return JSONResponse({"object": "list", "data": [model]})

    async def weights(self, request: Request) -> Response:
        """Which weights are served; with a POST, once those of a folder are."""
        version = self._worker.state.version
        if request.method == "POST":
            self._require_changeable()
            version = await self._take_over(read(WeightsRequest, await self._json(request)).path)
        return JSONResponse({"object": "weights", "version": version})

    async def begin_weights(self, request: Request) -> Response:
        """Weights are to come in pieces."""
        self._require_changeable()
        body = read(WeightsBegin, await self._json(request))
        self._require_not_loading()
        update = await asyncio.to_thread(self._pushed.begin, body.config)
        return JSONResponse({"object": "weights.update", "update": update})

    async def bucket(self, request: Request) -> Response:
        """A piece of them."""
        self._require_changeable()
        self._require_not_loading()
        update, number = request.path_params["update"], bucket_number(request.path_params["number"])
        async with self._in_time():
            tensors = await self._pushed.take(update, number, request.stream())
        return JSONResponse({"object": "weights.bucket", "tensors": len(tensors)})

    async def finish_weights(self, request: Request) -> Response:
        """All have come: once they are served. Who has not heard so may ask again."""
        self._require_changeable()
        update = request.path_params["update"]
        read(WeightsFinish, await self._json(request))
        if self._finished is None or self._finished[0] != update:
            self._require_not_loading()  # these, perhaps, whose sender has lost patience
            self._pushed.folder(update)
            try:
                self._finished = update, await self._take_over(update)
            finally:
                self._pushed.drop()
        return JSONResponse({"object": "weights", "version": self._finished[1]})

    def _require_changeable(self) -> None:
        if self._pushed is None:
            raise Refusal(
                403, "Weights are not changed here: start the server with --weights-root."
            )

    def _require_not_loading(self) -> None:
        if self._loading.locked():
            raise Refusal(409, "Other weights are being loaded: ask again when they are.")

    async def _take_over(self, folder: str) -> int:
        """Serve the weights of a folder below the root: their version."""
        self._require_not_loading()
        async with self._loading:
            return await self._worker.load(folder)

    async def metrics(self, _request: Request) -> Response:
        """What the engine does."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    async def completions(self, request: Request) -> Response:
        """Continue texts."""
        begin = time.monotonic()
        body = read(CompletionRequest, await self._json(request), self.name)
        self._require_model(body.model)
        sampling = self._allowed(body.sampling())
        prompts = await asyncio.to_thread(self._ids, body.prompts())
        replies = Replies(
            "text_completion",
            self.name,
            self.words.spelling,
            log_probs=body.logprobs is not None,
            processed=body.logprobs_mode == "processed_logprobs",
            echo=self.words.decode if body.echo else None,
            token_ids=body.return_token_ids,
            experts=self._known_experts(body),
        )
        asked = _Asked(request, body, replies, prompts, sampling, begin)
        return await self._answer(asked)

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        begin = time.monotonic()
        body = read(ChatRequest, await self._json(request), self.name)
        self._require_model(body.model)
        text, prompt = await asyncio.to_thread(self._conversation, body)
        room = self._worker.about.positions - len(prompt)
        sampling = self._allowed(body.sampling(min(room, self.limits.answer_tokens or room)))
        replies = Replies(
            "chat.completion",
            self.name,
            self.words.spelling,
            log_probs=body.logprobs,
            token_ids=body.return_token_ids,
            experts=self._known_experts(body),
        )
        asked = _Asked(request, body, replies, [prompt], sampling, begin)
        return await self._answer(asked, partial(Thinking.behind, text))

    def _ids(self, prompts: list[str] | list[list[int]]) -> list[list[int]]:
        return [
            self.words.encode(prompt, True) if isinstance(prompt, str) else prompt
            for prompt in prompts
        ]

    def _conversation(self, body: ChatRequest) -> tuple[str, list[int]]:
        """The text that a model is to go on with, and its tokens."""
        text = self.words.prompt(Conversation(body.messages, body.tools or None))
        return text, self.words.encode(text, False)

    async def _json(self, request: Request) -> Any:
        """The body of a request whose client may ask; no larger and no slower than allowed."""
        self._require_turn(request)
        async with self._in_time():
            body = await self._body(request)
        return json_of(body)

    @contextlib.asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self.limits.seconds):
                yield
        except TimeoutError:
            raise Refusal(408, f"The body has not come within {self.limits.seconds:g} s.") from None

    async def _body(self, request: Request) -> bytes:
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self.limits.body_bytes:
            raise Refusal(413, f"The body is larger than {self.limits.body_bytes} bytes.")
        parts, size = [], 0
        try:
            async for part in request.stream():
                size += len(part)
                self._reading += len(part)
                if size > self.limits.body_bytes:
                    raise Refusal(413, f"The body is larger than {self.limits.body_bytes} bytes.")
                if self._reading > self.limits.waiting * self.limits.body_bytes:
                    raise Refusal(429, "Too many bodies come in at once: ask again later.")
                parts.append(part)
        finally:
            self._reading -= size
        return b"".join(parts)

    def _require_model(self, name: str) -> None:
        if name != self.name:
            sentence = f"There is no model {name!r} here; there is {self.name!r}."
            raise Refusal(404, sentence, field="model")

    def _known_experts(self, body: CompletionRequest | ChatRequest) -> bool:
        """Whether it is to be told where tokens went; refused where nothing routes."""
        if body.return_routed_experts and not self._worker.about.knows_experts:
            raise WrongField(
                "return_routed_experts: it is not known here where tokens go; leave it out.",
                "return_routed_experts",
            )
        return body.return_routed_experts

    def _allowed(self, sampling: SamplingParameters) -> SamplingParameters:
        """With the tokens that end an answer; refused where it would be too long."""
        most = self.limits.answer_tokens
        if most is not None and sampling.max_tokens > most:
            raise WrongField(
                f"max_tokens is {sampling.max_tokens}, and an answer may have {most} tokens here.",
                "max_tokens",
            )
        return dataclasses.replace(sampling, stop_tokens=sampling.stop_tokens | self.words.ends)

    async def _answer(
        self, asked: "_Asked", thinking: Callable[[], Thinking | None] = lambda: None
    ) -> Response:
        prompts, sampling, body = asked.prompts, asked.sampling, asked.body
        if not prompts:
            raise WrongField("prompt: there is none.", "prompt")
        wanted = len(prompts) * sampling.n
        if wanted > self.limits.waiting:
            raise UserError(
                f"{wanted} answers are asked for, n for each prompt, and a request may ask for "
                f"{self.limits.waiting}."
            )
        choices = [
            Choice(
                number * sampling.n + answer,
                prompt,
                TextStream(self.words.said, sampling.stop, sampling.stop_tokens),
                thinking(),
            )
            for number, prompt in enumerate(prompts)
            for answer in range(sampling.n)
        ]
        seconds = self.limits.seconds
        if seconds is not None:
            seconds -= time.monotonic() - asked.begin
        requests = [
            engine_requests.Request(tuple(prompt), sampling, seconds, number)
            for number, prompt in enumerate(prompts)
        ]
        stack = contextlib.AsyncExitStack()
        arriving = await stack.enter_async_context(self._worker.answers(requests))
        growth = growing(arriving, choices, sampling.n, self.limits.seconds)
        if body.stream:
            told = body.stream_options is not None and body.stream_options.include_usage
            return Stream(pieces(growth, choices, asked.replies, told), stack)
        async with stack:
            await unless_left(asked.request, to_the_end(growth))
        return JSONResponse(asked.replies.whole(choices))


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A request that was read.

    Attributes:
        request, body: as it came.
        replies: in which it is answered.
        prompts, sampling: what the engine is asked.
        begin: when it came, on the monotonic clock.
    """

    request: Request
    body: CompletionRequest | ChatRequest
    replies: Replies
    prompts: list[list[int]]
    sampling: SamplingParameters
    begin: float
