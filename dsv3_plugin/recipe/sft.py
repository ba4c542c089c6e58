"""The recipe of supervised fine-tuning."""

from pathlib import Path
from typing import Literal

from dsv3_plugin.recipe import corpora
from dsv3_plugin.recipe.tuned import Tuned


class Sft(Tuned):
    """Supervised fine-tuning: conversations that do not see each other, and what the assistant says
    in them."""

    stage: Literal["sft"] = "sft"
    """Which part of a model's life it is."""

    @property
    def train_prefixes(self) -> list[Path]:
        """Of the dataset of each file, or list of files, that is drawn from."""
        return [folder / "train" for folder in self._folders]

    @property
    def held_out_parts(self) -> list[Path]:
        """Of what is held out of each."""
        return [folder / "held_out" for folder in self._folders] if self.data.held_out else []

    @property
    def file_weights(self) -> list[float] | None:
        """Of each; None: every conversation comes once in an epoch."""
        weights = [member.weight for _, member in corpora.drawn_from(self.data.corpus)]
        return None if None in weights or len(weights) == 1 else weights

    @property
    def places_multiple(self) -> int:
        """What the places of a conversation are a multiple of: ranks that share it have two equal
        parts each."""
        context = self.parallel.context
        return 2 * context if context > 1 else 1

    @property
    def _folders(self) -> tuple[Path, ...]:
        return corpora.folders(self.data_folder, self.data.corpus)
