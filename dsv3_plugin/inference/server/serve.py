"""A checkpoint, or a Hugging Face folder, served."""

import contextlib
import os
import resource
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
import uvicorn

from dsv3_plugin.checkpoint import import_hf
from dsv3_plugin.checkpoint.conversion.tokenizer_files import end_ids
from dsv3_plugin.checkpoint.load import load_for_inference
from dsv3_plugin.data.chat.conversation import Conversation
from dsv3_plugin.data.chat.template import open_template
from dsv3_plugin.data.tokenizer import TextTokenizer
from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.cache import CacheShape
from dsv3_plugin.inference.engine import Engine, EngineSettings
from dsv3_plugin.inference.from_checkpoint import tokenizer_of_checkpoint
from dsv3_plugin.inference.server.app import Limits, Server, Words

KEY_VARIABLE = "DSV3_API_KEY"
_BYTES_OF_POSITION = 64
"""Of a body, for a position of the model: an id takes up to 8, and a token's text in JSON's escapes
6 a character."""
_BYTES_OF_REST = 2**20
"""For everything but the prompt: tools and their schemas are the largest."""


def serve(
    checkpoint: Path,
    *,
    host: str,
    port: int,
    cache_bytes: int | None,
    drafts: int,
    said: Callable[[str], None],
) -> None:
    """Serve until interrupted.

    Args:
        checkpoint: with its tokenizer.
        host, port: where to listen; port 0 takes a free one.
        cache_bytes: of the engine; None: see `default_cache`.
        drafts: tokens that multi-token prediction guesses ahead.
        said: told the address once it listens.

    Raises:
        UserError: the checkpoint cannot be loaded, or the address cannot be had.
    """
    tokenizer = tokenizer_of_checkpoint(checkpoint)
    listening = _listen(host, port)
    model, config = load_for_inference(checkpoint)
    if drafts and not config.mtp_num_layers:
        raise UserError(f"{checkpoint} has no multi-token prediction layers; leave --drafts out.")
    predictors = config.mtp_num_layers if drafts else 0
    shape = CacheShape.of(model.config, predictors=predictors)
    running = EngineSettings.most_running
    if cache_bytes is None:
        cache_bytes = default_cache(shape, running, model.max_sequence_length + 2 * drafts)
    engine = Engine(model, EngineSettings(cache_bytes, drafts=drafts), text_of=tokenizer.decode)
    body = _BYTES_OF_REST + _BYTES_OF_POSITION * model.max_sequence_length
    limits = Limits(body, waiting=running)
    key = os.environ.get(KEY_VARIABLE)
    server = Server(config.name, engine, words_of(tokenizer), limits, key)
    address, bound = listening.getsockname()[:2]
    said(f"{config.name} at http://{address}:{bound}/v1")
    # Each connection is an open file, and the process needs some for itself.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
    settings = uvicorn.Config(server.application(), log_level="warning", limit_concurrency=most)
    with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again when it has ended
        uvicorn.Server(settings).run([listening])


def serve_hf(folder: Path, **how: Any) -> None:
    """Serve a Hugging Face folder, imported for the while; see `serve`.

    Raises:
        UserError: it cannot be imported.
    """
    with tempfile.TemporaryDirectory(prefix="dsv3-serve-") as whole:
        checkpoint = Path(whole) / "checkpoint"
        import_hf(folder, checkpoint)
        serve(checkpoint, **how)


def default_cache(shape: CacheShape, running: int, longest: int) -> int:
    """Bytes of a cache: for as many of the longest texts as may run, or half of the free memory."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
    else:
        free = psutil.virtual_memory().available
    return min(running * shape.bytes_for([longest]), free // 2)


def words_of(tokenizer: TextTokenizer) -> Words:
    """A checkpoint's tokenizer, as the server uses it."""

    def prompt(conversation: Conversation) -> str:
        template = open_template(tokenizer.folder, None, {}, "all")
        return template.prompt(conversation, "messages")

    def encode(text: str, special: bool) -> list[int]:
        return tokenizer.backend.encode(text, add_special_tokens=special).ids

    ends = end_ids(tokenizer.folder, tokenizer.eos_id)
    return Words(encode, lambda ids: tokenizer.decode(ids), prompt, ends)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(
            f"{host} port {port} cannot be listened on ({(error.strerror or str(error)).lower()}): "
            "name another with --host and --port."
        ) from None
