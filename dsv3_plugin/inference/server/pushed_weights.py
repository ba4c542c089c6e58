"""Weights that come in pieces, and are gathered in a folder until they are whole.

A piece is a safetensors file, as it comes. Pieces may come in any order, and again: who sends them
may not have heard that they were there. Whoever begins anew takes the place of who began before.
"""

import asyncio
import json
import secrets
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from dsv3_plugin.checkpoint.formats.hf_headers import CONFIG, read_header
from dsv3_plugin.checkpoint.names import layout, values
from dsv3_plugin.errors import UserError
from dsv3_plugin.files import locks
from dsv3_plugin.files.full_disk import reason
from dsv3_plugin.inference.server.refusals import Refusal
from dsv3_plugin.recipe.model import ModelConfig

_PREFIX = ".dsv3-pushed-"
_LOCK = ".held"
_BYTES_OF_NAME = 512
"""Of a tensor's entry in a header."""


class PushedWeights:
    """Gathers one set of weights at a time.

    Args:
        root: where its folder is made.
        config: of the served model, whose weights in FP32 are the most that is taken.
    """

    def __init__(self, root: Path, config: ModelConfig) -> None:
        self._root = root
        self._most_bytes = 4 * values(config) + _BYTES_OF_NAME * len(layout(config))
        self._name: str | None = None
        self._lock: locks.FolderLock | None = None
        self._sizes: dict[int, int] = {}

    def begin(self, config: dict[str, Any]) -> str:
        """Make a folder for weights; its name in the root.

        Args:
            config: `config.json` of the model that they are of.

        Raises:
            UserError: the disk does not take it.
        """
        self.drop()
        for left in self._root.glob(f"{_PREFIX}*"):  # by a server that was killed
            if not locks.is_held(left / _LOCK):
                shutil.rmtree(left, ignore_errors=True)
        name = _PREFIX + secrets.token_hex(8)
        try:
            self._lock = locks.take(self._root / name, _LOCK)
            (self._root / name / CONFIG).write_text(json.dumps(config))
        except OSError as error:
            raise _not_kept(self._root, error) from None
        self._name = name
        return name

    async def take(self, name: str, number: int, parts: AsyncIterator[bytes]) -> list[str]:
        """Keep a piece; the names of its tensors.

        Args:
            name: that `begin` gave.
            number: of the piece; one of the same number is replaced.
            parts: of the file.

        Raises:
            Refusal: nobody has begun so, or it is too large.
            UserError: it is no safetensors file, or the disk does not take it.
        """
        folder = self.folder(name)
        coming = folder / f"{secrets.token_hex(8)}.part"
        others = sum(size for other, size in self._sizes.items() if other != number)
        size = 0
        try:
            with coming.open("wb") as file:
                async for part in parts:
                    size += len(part)
                    if others + size > self._most_bytes:
                        raise Refusal(
                            413, f"The weights are larger than {self._most_bytes} bytes, which the "
                            "model takes in FP32."
                        )  # fmt: skip
                    await asyncio.to_thread(file.write, part)
            tensors = [*read_header(coming)]
            coming.replace(folder / f"{number:06d}.safetensors")
        except OSError as error:
            self.folder(name)  # which may have gone meanwhile
            raise _not_kept(folder, error) from None
        finally:
            coming.unlink(missing_ok=True)
        self._sizes[number] = size
        return tensors

    def folder(self, name: str) -> Path:
        """Where the pieces are.

        Raises:
            Refusal: nobody has begun so, or somebody else has since.
        """
        if name != self._name:
            raise Refusal(
                404, "These weights were not begun here, or others were since: begin again."
            )
        return self._root / name

    def drop(self) -> None:
        """Remove what came."""
        if self._name is not None:
            shutil.rmtree(self._root / self._name, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
        self._name, self._lock, self._sizes = None, None, {}


def _not_kept(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"The weights cannot be kept in {folder} ({reason(error).lower()}): make room there, or "
        "name another folder with --weights-root."
    )
