"""What was evaluated."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Subject:
    """A checkpoint as it was evaluated.

    Attributes:
        checkpoint: as it was named.
        changes: of its model, as they were written.
    """

    checkpoint: str
    changes: tuple[str, ...]

    @property
    def name(self) -> str:
        return " ".join((self.checkpoint, *self.changes))
