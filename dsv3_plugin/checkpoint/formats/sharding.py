"""How a Hugging Face folder divides its tensors among files, for another folder to do the same."""

from dataclasses import dataclass
from pathlib import Path

from dsv3_plugin.checkpoint.formats.hf_headers import INDEX, Described, read_folder
from dsv3_plugin.checkpoint.names import SCALE
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.links import inside


@dataclass(frozen=True)
class Sharding:
    """The division of a folder.

    Attributes:
        folder: whose it is.
        tensors: its tensors, each with its file and its place there.
        index: the index file as it is; None: it has none.
    """

    folder: Path
    tensors: dict[str, Described]
    index: bytes | None

    @classmethod
    def of(cls, folder: Path) -> "Sharding":
        """That of a folder, from its headers alone.

        Raises:
            UserError: it holds no safetensors, or they are damaged.
        """
        if not folder.is_dir():
            raise UserError(
                f"{folder} is no folder, whose shards could be taken over: name the Hugging Face "
                "folder that the model came from, or leave --shards-as out."
            )
        tensors = read_folder(folder)
        if not tensors:
            raise UserError(
                f"{folder} has no safetensors, whose division could be taken over: name the "
                "Hugging Face folder that the model came from."
            )
        index = inside(folder, INDEX)
        return cls(folder, tensors, index.read_bytes() if index.is_file() else None)

    def file_of(self, name: str) -> str:
        """The file for a tensor; that of its weight for scales that the folder has not.

        Raises:
            UserError: the folder has no such tensor.
        """
        described = self.tensors.get(name) or self.tensors.get(name.removesuffix(SCALE))
        if described is None:
            raise UserError(
                f"{name} is in no file of {self.folder}, which is to say where it goes: name the "
                "folder of this very model, or leave out --shards-as."
            )
        return described.file

    def header_of(self, file: str) -> bytes:
        """All that lies before the first tensor of a file."""
        begin = min(d.position for d in self.tensors.values() if d.file == file)
        with inside(self.folder, file).open("rb") as handle:
            return handle.read(begin)
