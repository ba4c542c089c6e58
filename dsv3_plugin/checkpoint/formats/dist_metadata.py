"""What a `torch_dist` checkpoint holds, read from its `.metadata` without torch.

`.metadata` is a pickle of torch.distributed.checkpoint's records. It is read here into plain
records of our own: nothing in it is executed, and `dsv3 inspect` answers before torch would have
been imported.
"""

import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv3_plugin.checkpoint.formats.hf_headers import ITEMSIZE
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.links import inside

METADATA = ".metadata"

Box = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes in a file of the checkpoint's folder."""

    file: str
    position: int
    length: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A distributed tensor."""

    dtype: str
    """torch's name: "bfloat16"."""
    shape: Box
    chunks: tuple[tuple[Box, Box, Place], ...]
    """(offset, sizes, where) of each box it is stored in."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEMSIZE[self.dtype]


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything in one iteration's folder."""

    tensors: dict[str, StoredTensor]
    objects: dict[str, Place]
    """What is stored as bytes: extra states, random states, the common state."""


def read_contents(folder: Path) -> Contents:
    """The contents of a checkpoint folder, whose files are all there and long enough.

    Raises UserError naming what is missing, damaged or cut short.
    """
    path = folder / METADATA
    try:
        with path.open("rb") as handle:
            metadata = _Reader(handle).load()
        contents = _contents(metadata)
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} holds no distributed checkpoint: {METADATA} is missing."
        ) from error
    except Exception as error:
        raise UserError(f"{path} is damaged: {error or type(error).__name__}.") from error
    _check_files(folder, contents)
    return contents


def _contents(metadata: Any) -> Contents:
    storage = {}
    for index, info in metadata.storage_data.items():
        storage[index.fqn, index.offset] = Place(info.relative_path, info.offset, info.length)
    tensors, objects = {}, {}
    for key, stored in metadata.state_dict_metadata.items():
        if not hasattr(stored, "chunks"):
            objects[key] = storage[key, None]
            continue
        chunks = tuple((box.offsets, box.sizes, storage[key, box.offsets]) for box in stored.chunks)
        tensors[key] = StoredTensor(stored.properties.dtype, stored.size, chunks)
    return Contents(tensors, objects)


def _check_files(folder: Path, contents: Contents) -> None:
    last: dict[str, tuple[int, str]] = {}
    places = [(key, place) for key, place in contents.objects.items()]
    places += [
        (k, place) for k, tensor in contents.tensors.items() for _, _, place in tensor.chunks
    ]
    for key, place in places:
        end = place.position + place.length, key
        last[place.file] = max(last.get(place.file, (0, "")), end)
    for file, (end, key) in last.items():
        try:
            size = inside(folder, file).stat().st_size
        except FileNotFoundError as error:
            raise UserError(f"{folder / file} is missing; it holds {key}.") from error
        if size < end:
            raise UserError(
                f"{folder / file} is cut short: {key} should end at byte {end}, the file has "
                f"{size}."
            )


class _Record:
    """Stands for any of torch's records: pickle gives it the fields it was saved with."""

    def __init__(self, *args: Any) -> None:
        pass


class _Properties:
    """torch's TensorProperties, which saves itself as a tuple."""

    dtype: str

    def __setstate__(self, state: tuple) -> None:
        self.dtype = state[0]


class _Index(_Record):
    """torch's MetadataIndex: a key of the table of places, so it has to be hashable."""

    fqn: str
    offset: Box | None = None

    def __hash__(self) -> int:
        return hash((self.fqn, self.offset))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Index) and (self.fqn, self.offset) == (other.fqn, other.offset)


_DTYPES = frozenset(ITEMSIZE)


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return name
        if module == "torch" and name == "Size":
            return tuple
        if name == "TensorProperties":
            return _Properties
        if name == "MetadataIndex":
            return _Index
        return _Record
