"""The recipe of supervised fine-tuning."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from dsv3_plugin.recipe import corpora
from dsv3_plugin.recipe.continued import Continued
from dsv3_plugin.recipe.curve import Curve
from dsv3_plugin.recipe.sections import Curves

Trained = Literal["train", "freeze"]


class Sft(Continued):
    """Supervised fine-tuning: conversations that do not see each other, and what the assistant says
    in them."""

    stage: Literal["sft"] = "sft"
    """Which part of a model's life it is."""
    mtp: Trained = "train"
    """Multi-token prediction: trained on what the assistant says, or frozen: its own weights stay,
    and its loss is of no weight."""
    router: Trained = "train"
    """Routers: trained as in pretraining, or frozen: their weights and biases stay, and there is no
    balance loss."""

    @cached_property
    def curves(self) -> Curves:
        """The curves as functions of consumed tokens; of what is frozen, zero."""
        curves = super().curves
        if self.mtp == "freeze":
            curves = replace(curves, mtp_weight=Curve.constant(0.0))
        if self.router == "freeze":
            curves = replace(curves, router_bias_speed=Curve.constant(0.0))
        return curves

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
