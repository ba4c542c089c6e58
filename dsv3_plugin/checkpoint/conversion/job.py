"""The pieces of a conversion, and how many of them an earlier run has written."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import torch

from dsv3_plugin.checkpoint.conversion.journal import Checksums
from dsv3_plugin.checkpoint.formats.target import Target


@dataclass(frozen=True, slots=True)
class Job:
    """Produces the bytes of its targets, front to back; one without targets only checks."""

    targets: tuple[Target, ...]
    blocks: Callable[[], Iterator[tuple[torch.Tensor, ...]]]
    """Yields one tensor per target at a time; their rows, put together, are the targets."""
    sources: tuple[str, ...]
    """Names of the source tensors it consumes."""
    read_bytes: int
    check: Callable[[Checksums], None] | None = None
    """Looks at the checksums of its targets; what it raises fails the job."""

    def is_among(self, names: Collection[str]) -> bool:
        """Whether all that it produces has one of these names; of one that only checks, never."""
        return bool(self.targets) and all(target.name in names for target in self.targets)


@dataclass(frozen=True)
class Kept:
    """What an earlier run has written, which one that goes on need not do again."""

    tensors: int = 0
    """Tensors of the target."""
    bytes: int = 0
    """Of those tensors."""
    source_bytes: int = 0
    """That were read for them."""
    files: int = 0
    """Files of the target that have no other tensor."""


NOTHING = Kept()


def kept_of(jobs: Iterable[Job], names: Collection[str]) -> Kept:
    """How much the jobs are whose tensors, of these names, are written."""
    tensors = written = read = 0
    whole: set[str] = set()
    begun: set[str] = set()
    for job in jobs:
        files = {piece.file for target in job.targets for piece in target.pieces}
        if not job.is_among(names):
            begun |= files
            continue
        whole |= files
        tensors += len(job.targets)
        written += sum(target.nbytes for target in job.targets)
        read += job.read_bytes
    return Kept(tensors, written, read, len(whole - begun))
