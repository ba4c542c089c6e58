"""Where a tensor's bytes go.

Both formats that are written have a layout that is known before the first byte: a `Target` says at
which position of which file a tensor's bytes lie.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from dsv3_plugin.checkpoint.formats.torch_zip import Container


class Piece(NamedTuple):
    """A run of a tensor's bytes in a target file, and the container around it, if any."""

    file: str
    position: int
    nbytes: int
    container: Container | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor to be written and where its bytes go."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def nbytes(self) -> int:
        return sum(piece.nbytes for piece in self.pieces)
