"""The recipe of pretraining."""

from typing import Literal

from dsv3_plugin.recipe.common import Common


class Pretrain(Common):
    """Pretraining: documents laid end to end, and the next token."""

    stage: Literal["pretrain"] = "pretrain"
    """Which part of a model's life it is."""
