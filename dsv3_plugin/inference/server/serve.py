"""A checkpoint, or a Hugging Face folder, served."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn

from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.checkpoint_tokenizer import tokenizer_of_checkpoint
from dsv3_plugin.inference.server.app import Server
from dsv3_plugin.inference.server.connections import HEAD_S, http_for, most_connections
from dsv3_plugin.inference.server.engine_process import engine_process
from dsv3_plugin.inference.server.limits import Limits
from dsv3_plugin.inference.server.messages import EngineOrder
from dsv3_plugin.inference.server.pushed_weights import PushedWeights
from dsv3_plugin.inference.server.words import words_of
from dsv3_plugin.inference.settings import EngineSettings
from dsv3_plugin.numbers import number_of
from dsv3_plugin.recipe.model_names import told_name
from dsv3_plugin.terminal.lines import note

KEY_VARIABLE = "DSV3_API_KEY"
_BYTES_OF_POSITION = 64
"""Of a body, for a position of the model: an id takes up to 8, and a token's text in JSON's escapes
6 a character."""
_BYTES_OF_REST = 2**20
"""For everything but the prompt: tools and their schemas are the largest."""
REQUEST_S = 600.0
"""After which OpenAI's client does not wait any more, unless it is told to."""
_GRACE_S = 25
"""For answers that are under way when the server is to end. Kubernetes ends a container after 30;
the rest is for the step that runs."""


_LOOK_S = 0.1


@dataclass(frozen=True)
class ServerSettings:
    """How a model is served.

    Attributes:
        host, port: where to listen; port 0 takes a free one.
        cache_bytes: of the engine; None: see `default_cache`.
        drafts: tokens that multi-token prediction guesses ahead.
        answer_tokens, seconds, per_minute: see `Limits`.
        weights_root: the folder that other weights may be loaded from; None: they may not.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    cache_bytes: int | None = None
    drafts: int = 0
    answer_tokens: int | None = None
    seconds: float | None = REQUEST_S
    per_minute: int | None = None
    weights_root: Path | None = None


def serve(checkpoint: Path, wanted: ServerSettings, said: Callable[[str], None]) -> bool:
    """Serve until interrupted.

    Args:
        checkpoint: with its tokenizer.
        wanted: how.
        said: told the address once it listens.

    Returns:
        Whether the engine ran until then; it may have ended by itself, killed for one.

    Raises:
        UserError: the checkpoint cannot be loaded, the address cannot be had, or the key is none.
    """
    return _serve(checkpoint, None, wanted, said)


def serve_hf(folder: Path, wanted: ServerSettings, said: Callable[[str], None]) -> bool:
    """Serve a Hugging Face folder, imported for the while; see `serve`.

    Raises:
        UserError: it cannot be imported.
    """
    with tempfile.TemporaryDirectory(prefix="dsv3-serve-") as whole:
        return _serve(Path(whole) / "checkpoint", folder, wanted, said)


def _serve(
    checkpoint: Path, hf: Path | None, wanted: ServerSettings, said: Callable[[str], None]
) -> bool:
    key = key_of(os.environ)
    root = wanted.weights_root
    if root is not None:
        _require_guarded(root, key)
    running = EngineSettings.most_running
    order = EngineOrder(checkpoint, hf, wanted.cache_bytes, wanted.drafts, running, root)
    with _listen(wanted.host, wanted.port) as listening, engine_process(order) as made:
        tokenizer = None if hf is not None else tokenizer_of_checkpoint(checkpoint)
        worker = made()
        about = worker.about
        body = _BYTES_OF_REST + _BYTES_OF_POSITION * about.positions
        limits = Limits(body, running, wanted.answer_tokens, wanted.seconds, wanted.per_minute)
        pushed = None if root is None else PushedWeights(root, about.model)
        words = words_of(tokenizer or tokenizer_of_checkpoint(checkpoint))
        name = told_name(about.model)
        server = Server(name, worker, words, limits, key, pushed)
        address, bound = listening.getsockname()[:2]
        said(f"{name} at http://{address}:{bound}/v1")
        settings = uvicorn.Config(
            server.application(),
            log_level="warning",
            http=http_for(most_connections(), HEAD_S),
            ws="none",  # an upgrade would have a connection that nobody counts
            timeout_graceful_shutdown=_GRACE_S,
        )
        logging.getLogger("asyncio").addFilter(is_of_the_server)
        logging.getLogger("uvicorn.error").addFilter(is_not_of_the_end)
        with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again when it has ended
            _Uvicorn(settings).run([listening])
    return not worker.failed


class _Uvicorn(uvicorn.Server):
    """Says what it waits for when it is to end, and waits no longer after a second Ctrl-C.

    uvicorn would still wait for the connections then (`asyncio.Server.wait_closed` does).
    """

    _hurried = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal has come."""
        if self.should_exit and sig == signal.SIGINT:
            self._hurried = True
        else:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End, once the requests under way have their answers or `_GRACE_S` are over."""
        if under_way := len(self.server_state.tasks):
            note(said_at_the_end(under_way))
        hurrying = asyncio.create_task(self._cut_short_when_hurried())
        try:
            await super().shutdown(sockets)
        finally:
            hurrying.cancel()

    async def _cut_short_when_hurried(self) -> None:
        while not self._hurried:
            await asyncio.sleep(_LOOK_S)
        for task in self.server_state.tasks:
            task.cancel()


def said_at_the_end(under_way: int) -> str:
    """What is said when a server is to end that has requests under way."""
    return (
        f"ending: {number_of(under_way, 'request')} under way, waited for up to {_GRACE_S} s; "
        "Ctrl-C once more ends at once."
    )


def is_not_of_the_end(record: logging.LogRecord) -> bool:
    """Whether it is not uvicorn's line on requests that are cut short since the server ends."""
    said = record.getMessage()
    return "timeout graceful shutdown exceeded" not in said and said != (
        "ASGI callable returned without completing response."
    )


def is_of_the_server(record: logging.LogRecord) -> bool:
    """Whether it is not asyncio's line for each event behind the fifth to a client that left."""
    return record.getMessage() != "socket.send() raised exception."


def key_of(environment: Mapping[str, str]) -> str | None:
    """The key that clients have to send, or None.

    Raises:
        UserError: it is none that can be sent.
    """
    key = environment.get(KEY_VARIABLE)
    if key is not None and (not key.isprintable() or key != key.strip() or not key):
        raise UserError(
            f"{KEY_VARIABLE} is empty, or has white space that no header carries: set a key, or "
            "unset it to serve everybody."
        )
    return key


def _require_guarded(root: Path, key: str | None) -> None:
    """Look whether only those who know a key can change weights, and from a folder."""
    if key is None:
        raise UserError(f"--weights-root lets clients change the weights: set {KEY_VARIABLE}.")
    if not root.is_dir():
        raise UserError(f"--weights-root {root} is no folder.")


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(
            f"{host} port {port} cannot be listened on ({(error.strerror or str(error)).lower()}): "
            "name another with --host and --port."
        ) from None
