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
    parent_recipe: str | None = None
    """The recipe, a shipped name or a path, that makes the parent where there is none yet: `dsv3
    train` trains it first, as long as its folder is the one in `from`."""
