"""What a Hugging Face folder holds, read from its index and its safetensors headers without torch.

Reading checks that index, headers and file sizes tell one story: nothing is missing, cut short,
listed twice or listed nowhere. What is wrong is one sentence with the tensor and the file in it.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def read_folder(folder: Path) -> dict[str, Described]:
    """The tensors of all safetensors files of a folder; empty if it has none and no index."""
    index = _read_index(inside(folder, INDEX))
    files = sorted({*index.values()} if index else {p.name for p in folder.glob("*.safetensors")})
    unlisted = {path.name for path in folder.glob("*.safetensors")}.difference(files)
    if unlisted:
        raise UserError(
            f"{folder / min(unlisted)} is in no entry of {INDEX}: its tensors would be left out; "
            "remove it if the model has none of them."
        )
    tensors: dict[str, Described] = {}
    for file in files:
        if not inside(folder, file).is_file():
            name = next((name for name, shard in index.items() if shard == file), None)
            if name is None:
                raise UserError(f"{folder / file} is no file, but a folder or a link to nothing.")
            raise UserError(f"{folder / file} is missing; {INDEX} says it holds {name}.")
        for name, described in read_header(folder / file).items():
            if name in tensors:
                raise UserError(
                    f"{name} is stored twice in {folder}: in {tensors[name].file} and in {file}; "
                    "take the file away that is not of this model."
                )
            tensors[name] = described
        if len(tensors) > _MOST_TENSORS:
            raise UserError(
                f"{folder} holds more than {_MOST_TENSORS:,} tensors, as no model does."
            )
    for name, file in index.items():
        if name not in tensors or tensors[name].file != file:
            raise UserError(f"{INDEX} says {name} is in {folder / file}; it is not.")
    for name, described in tensors.items() if index else ():
        if name not in index:
            raise UserError(f"{name} in {folder / described.file} is not in {INDEX}.")
    return tensors


def pickled_files(folder: Path) -> list[Path]:
    """The files of a folder that hold pickled weights.

    Those its index names, all of which are there; without one, `pytorch_model*.bin`, or else any
    pickle that is not known to be something else. Raises UserError naming a file that is missing,
    or a link out of the folder.
    """
    index = _read_index(inside(folder, PICKLE_INDEX))
    for name, file in index.items():
        if not (folder / file).is_file():
            raise UserError(f"{folder / file} is missing; {PICKLE_INDEX} says it holds {name}.")
    found = [folder / file for file in {*index.values()}] or [*folder.glob("pytorch_model*.bin")]
    found = found or [
        path
        for path in folder.glob("*")
        if path.suffix in (".bin", ".pt", ".pth") and not path.name.startswith(_NO_WEIGHTS)
    ]
    return sorted(inside(folder, path.name) for path in found)


def read_header(path: Path) -> dict[str, Described]:
    """The tensors of one safetensors file, which its header must describe to the last byte."""

    if not path.is_file():  # a pipe would be waited for without end
        raise UserError(f"{path} cannot be read: it is missing, or no file.")
    size = path.stat().st_size
    try:
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if not 0 < length <= min(_LONGEST_HEADER, size - 8):
                raise UserError(f"{path} is no whole safetensors file: its header is cut short.")
            text = handle.read(length)
        content = json_text.parse(text)
        content.pop("__metadata__", None)
        start = 8 + length
        tensors = {name: _described(path, name, start, entry) for name, entry in content.items()}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except json_text.Repeated as error:
        raise UserError(f"{error.key} is stored twice in {path}.") from error
    except json_text.TooMuch as error:
        raise UserError(f"{path} has a header that nobody means: {error}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no whole safetensors file: its header is damaged.") from error
    end = start
    for name, described in sorted(tensors.items(), key=lambda item: item[1].position):
        if described.position != end:
            raise UserError(f"{name} in {path} does not begin where the tensor before it ends.")
        end += described.nbytes
        if end > size:
            raise UserError(
                f"{path} is cut short: {name} should end at byte {end}, the file has {size}."
            )
    if end != size:
        raise UserError(f"{path} has {size - end} bytes that no tensor accounts for.")
    return tensors


def read_config(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    """The `config.json` of a Hugging Face folder, or where a checkpoint keeps that."""
    path = inside(folder, name)
    try:
        config = json_text.read(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: it says which model the tensors are.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no JSON object.")
    return config


def _described(path: Path, name: str, start: int, entry: dict[str, Any]) -> Described:
    (begin, end), shape, dtype = entry["data_offsets"], entry["shape"], entry["dtype"]
    if (
        not (all(map(_is_size, shape)) and _is_size(begin) and _is_size(end))
        or len(shape) > _MOST_AXES
    ):
        raise UserError(f"{name} in {path} is damaged: its shape or place is no list of sizes.")
    if dtype not in DTYPES:
        raise UserError(f"{name} in {path} has the unsupported type {dtype}.")
    described = Described(DTYPES[dtype], tuple(shape), path.name, start + begin)
    if end - begin != described.nbytes:
        raise UserError(
            f"{name} in {path} is damaged: its shape {shape} does not take the "
            f"{end - begin} bytes it is given."
        )
    return described


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
    raise UserError(f"{path} is damaged: it maps no tensors to files of its folder.")
