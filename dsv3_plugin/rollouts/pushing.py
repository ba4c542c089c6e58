"""Weights of a Hugging Face folder, sent to a server that does not see it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save

from dsv3_plugin.checkpoint.formats.hf_headers import read_config
from dsv3_plugin.checkpoint.formats.hf_reader import HFFolder
from dsv3_plugin.rollouts.buckets import buckets
from dsv3_plugin.web import Refused, Unanswered

_PATH = "/v1/weights"
_UNKNOWN = 404
_TIMES = 4
"""A server is started again now and then, and not whenever it is sent weights."""


def push(post: Callable[[str, Any], Any], folder: Path, most_bytes: int) -> Any:
    """Send weights in pieces, and have them served; what the server says to that.

    A server that was started again in the middle knows of no piece, and gets all of them again.

    Args:
        post: asks the server at a path, with JSON or with bytes.
        folder: with the weights.
        most_bytes: of a piece.

    Raises:
        Unanswered: it does not take them.
        UserError: the folder cannot be read.
    """
    for _ in range(_TIMES):
        begun = post(f"{_PATH}/begin", {"config": read_config(folder)})
        if not isinstance(begun, dict) or not isinstance(begun.get("update"), str):
            raise Unanswered(f"takes no weights in pieces at {_PATH}")
        place = f"{_PATH}/{begun['update']}"
        try:
            for number, body in enumerate(bodies(folder, most_bytes)):
                post(f"{place}/{number}", body)
            return post(f"{place}/finish", {})
        except Refused as error:
            if error.status != _UNKNOWN:
                raise
    raise Unanswered(f"has lost what it was sent, {_TIMES} times")


def bodies(folder: Path, most_bytes: int) -> Iterator[bytes]:
    """The weights of a folder as safetensors files that part nothing that is loaded together.

    Args:
        folder: of Hugging Face's form.
        most_bytes: of the tensors of each; see `buckets`.
    """
    stored = HFFolder(folder)
    sizes = ((name, tensor.nbytes) for name, tensor in stored.tensors.items())
    for names in buckets(sizes, most_bytes):
        yield save({name: stored.rows(name, 0, stored.tensors[name].shape[0]) for name in names})
