"""Upstream's own reading of checkpoints, with our reader in place of its unpickler.

Upstream and torch's distributed checkpoints unpickle `.metadata`, and every object that is no
tensor, whatever they name. While `restricted_reading` lasts, the three functions that do so (rows
of the table of patches) read as `formats.pickles` does; for everybody else in the process they
stay torch's.
"""

import contextlib
import functools
import io
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from dsv3_plugin.checkpoint.formats.containers import ZIP, open_saved
from dsv3_plugin.checkpoint.formats.dist_metadata import Contents, Place, parse_metadata
from dsv3_plugin.checkpoint.formats.extra_states import check_extra_state, is_extra_state
from dsv3_plugin.checkpoint.formats.pickles import PickleError
from dsv3_plugin.checkpoint.formats.saved_object import load_saved
from dsv3_plugin.checkpoint.formats.symbols import OBJECTS
from dsv3_plugin.errors import UserError

Function = Callable[..., Any]

_refused: ContextVar[list[UserError] | None] = ContextVar("refused", default=None)
"""What was refused since our reading began; None: it is not we who read."""


@contextlib.contextmanager
def restricted_reading() -> Iterator[None]:
    """Inside, nothing that upstream or torch loads from a file can run code.

    The rows of `checkpoint.patches` have to be applied.

    Raises:
        UserError: a file names what could run code, or is damaged.
    """
    refused: list[UserError] = []
    token = _refused.set(refused)
    try:
        yield
    except UserError:
        raise
    except BaseException as error:  # torch's CheckpointException is no Exception
        # torch hands on the text of what its ranks raised, at best.
        if refused:
            raise refused[0] from error
        raise
    finally:
        _refused.reset(token)


@contextlib.contextmanager
def _refusals(where: object) -> Iterator[None]:
    """What is wrong with a file becomes a sentence, and is kept."""
    try:
        yield
    except (UserError, PickleError) as error:
        said = error
        if isinstance(error, PickleError):
            said = UserError(f"{where} cannot be loaded: {error}.")
        _refused.get().append(said)
        raise said from error


def load(original: Function) -> Function:
    """Wraps `torch.load`."""

    @functools.wraps(original)
    def load(f: Any, *args: Any, **kwargs: Any) -> Any:
        if _refused.get() is None:
            return original(f, *args, **kwargs)
        data, where = _read(f)
        if not data.startswith(ZIP):
            # As torch wrote before 1.6, and Transformer Engine's states have inside: torch itself
            # then takes tensors and nothing else.
            return original(io.BytesIO(data), map_location="cpu", weights_only=True)
        with _refusals(where):
            return load_saved(data, where)

    return load


def load_bytes(original: Function) -> Function:
    """Wraps `DefaultLoadPlanner.load_bytes`, which gets what is stored under a key."""

    @functools.wraps(original)
    def load_bytes(self: Any, read_item: Any, value: io.BytesIO) -> Any:
        key = read_item.storage_index.fqn
        if _refused.get() is not None and is_extra_state(key):
            data = value.getvalue()
            with _refusals(key):
                saved = open_saved(data)
                check_extra_state(saved.content(OBJECTS, key), saved, data, key)
        return original(self, read_item, value)

    return load_bytes


def read_metadata(original: Function) -> Function:
    """Wraps `FileSystemReader.read_metadata`."""

    @functools.wraps(original)
    def read_metadata(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _refused.get() is None:
            return original(self, *args, **kwargs)
        path = self._get_metadata_path(kwargs.get("rank"))
        with self.fs.create_stream(path, "rb") as file, _refusals(path):
            metadata = metadata_of(parse_metadata(file.read(), path))
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata

    return read_metadata


def metadata_of(contents: Contents) -> Metadata:
    """torch's records of what a checkpoint holds, made anew."""
    described: dict[str, Any] = {key: BytesStorageMetadata() for key in contents.objects}
    storage = {MetadataIndex(key): _info(place) for key, place in contents.objects.items()}
    for key, tensor in contents.tensors.items():
        chunks = []
        for offset, sizes, place in tensor.chunks:
            chunks.append(ChunkStorageMetadata(torch.Size(offset), torch.Size(sizes)))
            storage[MetadataIndex(key, offset)] = _info(place)
        properties = TensorProperties(getattr(torch, tensor.dtype))
        described[key] = TensorStorageMetadata(properties, torch.Size(tensor.shape), chunks)
    return Metadata(described, storage_data=storage)


def _info(place: Place) -> _StorageInfo:
    return _StorageInfo(place.file, place.position, place.length)


def _read(file: Any) -> tuple[bytearray, object]:
    """All of a file, or of what is left of an open one, and how a person knows it."""
    if isinstance(file, (str, os.PathLike)):
        with open(file, "rb") as opened:
            return bytearray(opened.read()), file
    return bytearray(file.read()), getattr(file, "name", "an object of the checkpoint")
