"""What a Hugging Face folder holds, read from its index and its safetensors headers without torch.

Reading checks that index, headers and file sizes tell one story: nothing is missing, cut short,
listed twice or listed nowhere. What is wrong is one sentence with the tensor and the file in it;
`survey` collects them, `read_folder` ends with the first.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv3_plugin.checkpoint.formats.broken_files import AGAIN, BrokenFiles
from dsv3_plugin.errors import UserError
from dsv3_plugin.files import json_text
from dsv3_plugin.files.links import inside, is_name

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
PICKLE_INDEX = "pytorch_model.bin.index.json"

DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
"""safetensors' name of a type → torch's."""

ITEMSIZE = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip

_NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")
"""How the names of the pickles begin that transformers' Trainer leaves beside the weights."""

_LONGEST_HEADER = 100_000_000
"""safetensors' own limit, in bytes."""

_MOST_AXES = 16
_TOO_MUCH = 2**63
_MOST_TENSORS = 1_000_000
"""In all files of a folder; DeepSeek-V3 has 92 thousand, Kimi-K2 in four bits 210 thousand."""


@dataclass(frozen=True, slots=True)
class Described:
    """A tensor in a safetensors file."""

    dtype: str
    """torch's name: "bfloat16"."""
    shape: tuple[int, ...]
    file: str
    position: int
    """Offset in the file of its first byte."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEMSIZE[self.dtype]


@dataclass(frozen=True)
class Survey:
    """What is in a folder, and what is wrong with it.

    Attributes:
        tensors: of the files that are whole.
        index: tensor → file, as the folder's index has it; empty: it has none.
        broken: files that are missing, cut short or damaged, each with a sentence.
        unlike: sentences on what index and files say that the other does not.
    """

    tensors: dict[str, Described]
    index: dict[str, str]
    broken: dict[str, str]
    unlike: list[str]


def read_folder(folder: Path) -> dict[str, Described]:
    """The tensors of all safetensors files of a folder; empty if it has none and no index.

    Raises:
        BrokenFiles: some are missing, cut short or damaged.
        UserError: index and files do not tell one story.
    """
    found = survey(folder)
    if found.broken:
        raise BrokenFiles(found.broken)
    if found.unlike:
        raise UserError(found.unlike[0])
    return found.tensors


def survey(folder: Path) -> Survey:
    """The same, whatever is wrong with single files.

    Raises:
        UserError: the index is damaged, there is more than any model has, or a link leads out of
            the folder.
    """
    index = _read_index(inside(folder, INDEX))
    there = {path.name for path in folder.glob("*.safetensors")}
    files = sorted({*index.values()} if index else there)
    found = Survey({}, index, {}, [])
    found.unlike.extend(
        f"{folder / file} is in no entry of {INDEX}: its tensors would be left out; remove it if "
        "the model has none of them."
        for file in sorted(there.difference(files))
    )
    number = Counter(index.values())
    first = {file: name for name, file in reversed(index.items())}
    for file in files:
        if not inside(folder, file).is_file():
            found.broken[file] = _missing(folder / file, number[file], first.get(file), INDEX)
            continue
        try:
            header = read_header(folder / file)
        except BrokenFiles as error:
            found.broken[file] = str(error)
            continue
        for name, described in header.items():
            if name in found.tensors:
                found.unlike.append(
                    f"{name} is stored twice in {folder}: in {found.tensors[name].file} and in "
                    f"{file}; take the file away that is not of this model."
                )
            found.tensors[name] = described
        if len(found.tensors) > _MOST_TENSORS:
            raise UserError(
                f"{folder} holds more than {_MOST_TENSORS:,} tensors, as no model does."
            )
    found.unlike.extend(_differences(folder, found) if index else ())
    return found


def _differences(folder: Path, found: Survey) -> Iterator[str]:
    """Where index and headers of whole files differ, a sentence each."""
    for name, file in found.index.items():
        stored = found.tensors.get(name)
        if file not in found.broken and (stored is None or stored.file != file):
            yield f"{INDEX} says {name} is in {folder / file}; it is not: {AGAIN}, both of them."
    for name, described in found.tensors.items():
        if name not in found.index:
            yield (f"{name} in {folder / described.file} is not in {INDEX}: {AGAIN}, both of them.")


def _missing(path: Path, number: int, first: str | None, index: str) -> str:
    """The sentence for a file that is not there.

    Args:
        number, first: of its tensors, by the index.
        index: the name of the index.
    """
    if first is None:
        return f"{path} is no file, but a folder or a link to nothing: {AGAIN}."
    more = f" and {number - 1} more" if number > 1 else ""
    return f"{path} is missing; {index} says it holds {first}{more}: {AGAIN}."


def pickled_files(folder: Path) -> list[Path]:
    """The files of a folder that hold pickled weights.

    Those its index names, all of which are there; without one, `pytorch_model*.bin`, or else any
    pickle that is not known to be something else. Raises UserError naming a file that is missing,
    or a link out of the folder.
    """
    index = _read_index(inside(folder, PICKLE_INDEX))
    number = Counter(index.values())
    first = {file: name for name, file in reversed(index.items())}
    missing = {
        file: _missing(folder / file, number[file], first[file], PICKLE_INDEX)
        for file in sorted(first)
        if not (folder / file).is_file()
    }
    if missing:
        raise BrokenFiles(missing)
    found = [folder / file for file in first] or [*folder.glob("pytorch_model*.bin")]
    found = found or [
        path
        for path in folder.glob("*")
        if path.suffix in (".bin", ".pt", ".pth") and not path.name.startswith(_NO_WEIGHTS)
    ]
    return sorted(inside(folder, path.name) for path in found)


def read_header(path: Path) -> dict[str, Described]:
    """The tensors of one safetensors file, which its header must describe to the last byte.

    Raises:
        BrokenFiles: it is cut short or damaged.
        UserError: it is too much, or cannot be read.
    """

    if not path.is_file():  # a pipe would be waited for without end
        raise _broken(path, f"{path} cannot be read, as it is missing, or no file")
    size = path.stat().st_size
    try:
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if not 0 < length <= min(_LONGEST_HEADER, size - 8):
                raise _broken(path, f"{path} is no whole safetensors file, its header is cut short")
            text = handle.read(length)
        content = json_text.parse(text)
        content.pop("__metadata__", None)
        start = 8 + length
        tensors = {name: _described(path, name, start, entry) for name, entry in content.items()}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except json_text.Repeated as error:
        raise _broken(path, f"{error.key} is stored twice in {path}") from error
    except json_text.TooMuch as error:
        raise UserError(f"{path} has a header that nobody means: {error}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(
            path, f"{path} is no whole safetensors file, its header is damaged"
        ) from error
    end = start
    for name, described in sorted(tensors.items(), key=lambda item: item[1].position):
        if described.position != end:
            raise _broken(path, f"{name} in {path} does not begin where the tensor before it ends")
        end += described.nbytes
        if end > size:
            raise _broken(
                path,
                f"{path} is cut short, {name} should end at byte {end}, the file has {size}",
            )
    if end != size:
        raise _broken(path, f"{path} has {size - end} bytes that no tensor accounts for")
    return tensors


def read_config(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    """The `config.json` of a Hugging Face folder, or where a checkpoint keeps that."""
    path = inside(folder, name)
    try:
        config = json_text.read(path)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing, which says which model the tensors are: download it, too."
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): {AGAIN}.") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no JSON object, as a model's does: {AGAIN}.")
    return config


def _described(path: Path, name: str, start: int, entry: dict[str, Any]) -> Described:
    (begin, end), shape, dtype = entry["data_offsets"], entry["shape"], entry["dtype"]
    if (
        not (all(map(_is_size, shape)) and _is_size(begin) and _is_size(end))
        or len(shape) > _MOST_AXES
    ):
        raise _broken(path, f"{name} in {path} is damaged, its shape or place is no list of sizes")
    if dtype not in DTYPES:
        raise UserError(
            f"{name} in {path} has the unsupported type {dtype}: take the model's weights in BF16, "
            "FP16, FP32 or DeepSeek's FP8."
        )
    described = Described(DTYPES[dtype], tuple(shape), path.name, start + begin)
    if end - begin != described.nbytes:
        raise _broken(
            path,
            f"{name} in {path} is damaged, its shape {shape} does not take the {end - begin} bytes "
            "it is given",
        )
    return described


def _broken(path: Path, what: str) -> BrokenFiles:
    return BrokenFiles({path.name: f"{what}: {AGAIN}."})


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < _TOO_MUCH


def _read_index(path: Path) -> dict[str, str]:
    """Tensor → file; empty if there is no index."""
    if not path.is_file():
        return {}

    try:
        weights = json_text.read(path)["weight_map"]
        if weights and all(map(is_name, weights.values())):
            return weights
    except json_text.Repeated as error:
        raise UserError(
            f"{error.key} stands twice in {path}: leave the entry that is right."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UserError(f"{path} is damaged, it maps no tensors to files of its folder: {AGAIN}.")
