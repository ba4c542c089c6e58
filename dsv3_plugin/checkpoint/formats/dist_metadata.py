"""What a `torch_dist` checkpoint holds, read from its `.metadata` without torch.

`.metadata` is a pickle of torch.distributed.checkpoint's records. It is read here into plain
records of our own: nothing in it is executed, and `dsv3 inspect` answers before torch would have
been imported. Every verb that opens a checkpoint comes through here, so what a stranger's pickles
name is looked at here too, those of all objects included, whoever reads them afterwards.
"""

import math
import mmap
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv3_plugin.checkpoint.formats.broken_files import BrokenFiles
from dsv3_plugin.checkpoint.formats.containers import open_saved
from dsv3_plugin.checkpoint.formats.extra_states import check_extra_state, is_extra_state
from dsv3_plugin.checkpoint.formats.hf_headers import ITEMSIZE
from dsv3_plugin.checkpoint.formats.pickles import PickleError, Record, Symbol, parse
from dsv3_plugin.checkpoint.formats.symbols import DTYPES, IN_METADATA, OBJECTS, SIZE, TENSORS
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.json_text import read_plain
from dsv3_plugin.files.links import inside, is_name
from dsv3_plugin.files.run_folder import METADATA

_MOST_METADATA = 1 << 27
"""Bytes; the weights of DeepSeek-V3 take a tenth of that."""
_AGAIN = "copy it again from where the checkpoint was saved, or take another checkpoint"
COMMON_FILE = "common.pt"
"""Where older versions of upstream keep the common state."""

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

    Raises:
        ForeignSymbolError: the metadata or an object in the checkpoint names what could run code.
        BrokenFiles: files are missing or cut short.
        UserError: something is damaged.
    """
    path = folder / METADATA
    if not path.is_file():  # nor a device, which would never end
        raise UserError(
            f"{folder} holds no distributed checkpoint: {METADATA} is missing, {_AGAIN}."
        )
    try:
        data = read_plain(path, _MOST_METADATA)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    contents = parse_metadata(data, path)
    _check_files(folder, contents)
    _check_pickles(folder, contents.objects.items(), OBJECTS)
    _check_common(folder / COMMON_FILE)
    _check_sizes(folder, contents)
    return contents


def parse_metadata(data: bytes, path: object) -> Contents:
    """What a `.metadata` says that there is; no other file is looked at.

    Args:
        data: the bytes of the file.
        path: how a person knows it.

    Raises:
        ForeignSymbolError: it names what could run code.
        UserError: it is damaged.
    """
    try:
        return _contents(parse(data, IN_METADATA, path))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        said = str(error).rstrip(".") or type(error).__name__
        raise UserError(f"{path} is damaged ({said}): {_AGAIN}.") from error


def check_tensors(folder: Path, contents: Contents) -> None:
    """Look at what is pickled with each chunk of a tensor; whoever reads a chunk does so anyway.

    Raises:
        ForeignSymbolError: one names what could run code.
        UserError: one is damaged.
    """
    places = (
        (key, place) for key, tensor in contents.tensors.items() for _, _, place in tensor.chunks
    )
    _check_pickles(folder, places, TENSORS)


def _check_sizes(folder: Path, contents: Contents) -> None:
    """Before anybody makes room for what the metadata says there is."""
    for key, tensor in contents.tensors.items():
        for _, sizes, place in tensor.chunks:
            if math.prod(sizes) * ITEMSIZE[tensor.dtype] > place.length:
                _check_pickles(folder, [(key, place)], TENSORS)
                raise UserError(
                    f"{folder / METADATA} is damaged: a chunk of {key} has more values there than "
                    f"its bytes in {place.file} can hold."
                )


def _check_common(path: Path) -> None:
    if path.is_file():
        try:
            open_saved(read_plain(path)).content(OBJECTS, path)
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}.") from error


def _check_pickles(
    folder: Path, places: Iterable[tuple[str, Place]], allowed: frozenset[Symbol]
) -> None:
    """Look at pickles, in the order in which they lie in their files."""
    files: dict[str, dict[tuple[Place, bool], str]] = {}
    for key, place in places:  # many keys may share one
        files.setdefault(place.file, {})[place, is_extra_state(key)] = key
    known: set[bytes] = set()  # most are alike, to the byte
    for file, keys in files.items():
        with (folder / file).open("rb") as handle:
            data = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        data.madvise(mmap.MADV_RANDOM)  # or the kernel reads the tensors in between, too
        for (place, extra), key in sorted(keys.items(), key=lambda item: item[0][0].position):
            where = f"{key} in {folder / file}"
            try:
                saved = open_saved(data, place.position, place.length)
                if saved.pickle in known and not extra:
                    continue
                content = saved.content(allowed, where)
                if extra:
                    check_extra_state(content, saved, data, where)
            except PickleError as error:
                raise UserError(f"{where} is damaged: {error}.") from error
            known.add(saved.pickle)


def _contents(metadata: Any) -> Contents:
    fields = _fields(metadata, "Metadata")
    storage = {}
    for index, info in fields["storage_data"].items():
        at, stored = _fields(index, "MetadataIndex"), _fields(info, "_StorageInfo")
        if stored.get("transform_descriptors"):
            raise PickleError(f"{at['fqn']} is stored in a form that is not read here")
        storage[at["fqn"], _box(at.get("offset"))] = _place(stored)
    tensors, objects = {}, {}
    for key, stored in fields["state_dict_metadata"].items():
        if type(key) is not str:
            raise PickleError("a tensor has no name")
        if stored.symbol.name == "BytesStorageMetadata":
            objects[key] = storage[key, None]
            continue
        described = _fields(stored, "TensorStorageMetadata")
        shape = _box(described["size"])
        chunks = []
        for chunk in described["chunks"]:
            box = _fields(chunk, "ChunkStorageMetadata")
            offsets, sizes = _box(box["offsets"]), _box(box["sizes"])
            place = storage[key, offsets]
            _require_inside(key, shape, offsets, sizes)
            chunks.append((offsets, sizes, place))
        if not chunks:
            raise PickleError(f"{key} is stored nowhere")
        tensors[key] = StoredTensor(_dtype(described["properties"]), shape, tuple(chunks))
    return Contents(tensors, objects)


def _fields(record: Any, name: str) -> dict[str, Any]:
    """The attributes of one of torch's records."""
    if type(record) is not Record or record.symbol.name != name or type(record.state) is not dict:
        raise PickleError(f"there is no {name} where one belongs")
    return record.state


def _box(size: Any) -> Box | None:
    """A shape or an offset: a `torch.Size`."""
    if size is None:
        return None
    numbers = size.args[0] if type(size) is Record and size.symbol == SIZE else size
    if type(numbers) is not tuple or not all(type(n) is int and 0 <= n < 1 << 63 for n in numbers):
        raise PickleError("a shape is no row of numbers")
    return numbers


def _dtype(properties: Any) -> str:
    """Of a TensorProperties, whose attributes are saved as a tuple."""
    state = properties.state if type(properties) is Record else None
    if type(state) is tuple and state and state[0] in DTYPES:
        return state[0].name
    raise PickleError("there is no type of numbers where one belongs")


def _place(stored: dict[str, Any]) -> Place:
    """Raises PickleError unless it is a part of a file that lies in the checkpoint's folder."""
    file, position, length = (stored[name] for name in ("relative_path", "offset", "length"))
    if not is_name(file):
        raise PickleError(f"{str(file)[:100]!a} is no name of a file in the checkpoint's folder")
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in (position, length)) or not length:
        raise PickleError(f"what lies in {file} has no place there")
    return Place(file, position, length)


def _require_inside(key: str, shape: Box, offsets: Box | None, sizes: Box) -> None:
    if offsets is None or len(offsets) != len(shape) or len(sizes) != len(shape):
        raise PickleError(f"a chunk of {key} has another number of axes than {key}")
    if any(a + n > whole for a, n, whole in zip(offsets, sizes, shape, strict=True)):
        raise PickleError(f"a chunk of {key} reaches beyond it")


def _places(contents: Contents) -> Iterator[tuple[str, Place]]:
    yield from contents.objects.items()
    for key, tensor in contents.tensors.items():
        for _, _, place in tensor.chunks:
            yield key, place


def _check_files(folder: Path, contents: Contents) -> None:
    """Raises BrokenFiles naming those that are not there whole."""
    last: dict[str, tuple[int, str]] = {}
    for key, place in _places(contents):
        end = place.position + place.length, key
        last[place.file] = max(last.get(place.file, (0, "")), end)
    broken = {
        file: f"{folder / file} {what}: {_AGAIN}."
        for file, (end, key) in last.items()
        if (what := _not_whole(inside(folder, file), end, key))
    }
    if broken:
        raise BrokenFiles(broken)


def _not_whole(path: Path, end: int, key: str) -> str | None:
    """What is wrong with a file that should hold what is stored under a key up to this byte."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return f"is missing, which holds {key}"
    if not stat.S_ISREG(found.st_mode):
        return f"is no file, and should hold {key}"
    if found.st_size < end:
        return f"is cut short, {key} should end at byte {end}, the file has {found.st_size}"
    return None
