"""The recipe of a context extension."""

from typing import Literal

from dsv3_plugin.recipe.continued import Continued


class Extend(Continued):
    """Context extension: the weights of a shorter model learn longer sequences, with YaRN or
    without."""

    stage: Literal["extend"] = "extend"
    """Which part of a model's life it is."""
