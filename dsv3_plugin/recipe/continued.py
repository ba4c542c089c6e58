"""The recipe of a stage that begins with the weights of another run."""

from pydantic import Field

from dsv3_plugin.recipe.common import Common

PARENT = "parent"
"""In place of a tokenizer: the one of the weights that a stage begins with."""


class Continued(Common):
    """A stage that begins where another run, or an imported model, ended."""

    from_: str = Field(alias="from")
    """What it begins with: a run's folder (its newest whole checkpoint), a checkpoint's folder or
    that of one iteration, or a Hugging Face folder. Weights alone: the optimizer begins anew, and
    so do the curves."""
