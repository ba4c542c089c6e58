"""The recipe of a stage that trains a finished model further, and may leave parts of it alone."""

from dataclasses import replace
from functools import cached_property
from typing import Literal

from dsv3_plugin.recipe.continued import Continued
from dsv3_plugin.recipe.curve import Curve
from dsv3_plugin.recipe.sections import Curves

Trained = Literal["train", "freeze"]


class Tuned(Continued):
    """A stage whose multi-token prediction and routers are trained, or stay."""

    mtp: Trained = "train"
    """Multi-token prediction: trained on what the assistant says, or frozen: its own weights stay,
    and its loss is of no weight."""
    router: Trained = "train"
    """Routers: trained as in pretraining, or frozen: their weights and biases stay, and there is no
    balance loss."""

    @cached_property
    def curves(self) -> Curves:
        """The curves as functions of consumed tokens; of what is frozen, zero."""
        return replace(super().curves, **dict.fromkeys(self.frozen_curves, Curve.constant(0.0)))

    @property
    def frozen_curves(self) -> tuple[str, ...]:
        """The curves of what is frozen, whatever the recipe says of them."""
        parts = {"mtp_weight": self.mtp, "router_bias_speed": self.router}
        return tuple(name for name, part in parts.items() if part == "freeze")
