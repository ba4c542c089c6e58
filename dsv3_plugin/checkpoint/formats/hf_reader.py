"""Reads tensors from a Hugging Face folder: safetensors shards, memory-mapped, in rows.

Pickled weights (`pytorch_model*.bin`) are refused unless allowed, and then unpickled as tensors
only.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from dsv3_plugin.checkpoint.formats.containers import ZIP, open_saved
from dsv3_plugin.checkpoint.formats.hf_headers import pickled_files, read_folder
from dsv3_plugin.checkpoint.formats.mapped import MappedFiles, map_file, tensor_at
from dsv3_plugin.checkpoint.formats.pickles import Record
from dsv3_plugin.checkpoint.formats.stored_tensors import stored_tensor
from dsv3_plugin.checkpoint.formats.symbols import TENSORS
from dsv3_plugin.checkpoint.formats.torch_zip import payload_of, view_of
from dsv3_plugin.errors import UserError


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    file: str
    position: int = 0
    """Offset in the file of its first byte, where that means something."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class HFFolder:
    """The tensors of a Hugging Face folder."""

    def __init__(self, folder: Path, *, allow_pickle: bool = False) -> None:
        self._files = MappedFiles(folder)
        self._pickled: dict[str, torch.Tensor] = {}
        self.tensors = {
            name: Stored(getattr(torch, d.dtype), d.shape, d.file, d.position)
            for name, d in read_folder(folder).items()
        }
        if not self.tensors:
            self._read_pickles(folder, allow_pickle)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows `start:stop` of a tensor, a view of the file."""
        if name in self._pickled:
            return self._pickled[name][start:stop]
        stored = self.tensors[name]
        row = stored.dtype.itemsize * math.prod(stored.shape[1:])
        data = self._files.map(stored.file)
        shape = (stop - start, *stored.shape[1:])
        return tensor_at(data, stored.position + start * row, stored.dtype, shape)

    def _read_pickles(self, folder: Path, allowed: bool) -> None:
        files = pickled_files(folder)
        if not files:
            raise UserError(
                f"{folder} holds no *.safetensors file: copy those of the model that its "
                "config.json describes there."
            )
        if not allowed:
            raise UserError(
                f"{folder} holds pickled weights ({files[0].name}), which can run code when "
                "loaded: convert them to safetensors, or pass --allow-pickle to read them as "
                "tensors only."
            )
        for file in files:
            try:
                content = _tensors(file)
                stored = {n: Stored(t.dtype, tuple(t.shape), file.name) for n, t in content.items()}
            except UserError:
                raise
            except Exception as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
                raise UserError(f"{file} cannot be read as tensors only: {reason}.") from error
            if twice := self.tensors.keys() & stored.keys():
                name = min(twice)
                raise UserError(
                    f"{name} is stored twice in {folder}: in {self.tensors[name].file} and in "
                    f"{file.name}."
                )
            self.tensors |= stored
            self._pickled |= content


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a pickle, by name, as views of the file."""
    data = map_file(file)
    if data[: len(ZIP)] != ZIP:
        # What torch wrote before 1.6. It is read into memory, and torch itself takes tensors alone.
        return torch.load(file, weights_only=True, map_location="cpu")
    saved = open_saved(data)
    content = saved.content(TENSORS, file)
    named = content.items if type(content) is Record else content
    return {
        name: view_of(payload_of(stored_tensor(record, saved)), data)
        for name, record in named.items()
    }
