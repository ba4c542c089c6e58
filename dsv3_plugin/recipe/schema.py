"""The recipes there are: one class per stage of a model's life, told apart by `stage:`.

A further stage is a class in a file of its own and its name in `_KINDS`.
"""

from typing import Union

from dsv3_plugin.recipe.common import Common
from dsv3_plugin.recipe.extend import Extend
from dsv3_plugin.recipe.pretrain import Pretrain
from dsv3_plugin.recipe.rl import Rl
from dsv3_plugin.recipe.sft import Sft

_KINDS = (Pretrain, Extend, Sft, Rl)

Recipe = Union[_KINDS]  # noqa: UP007
"""The whole truth of a run, of whichever stage; what `load_recipe` returns."""

STAGES: dict[str, type[Common]] = {kind.model_fields["stage"].default: kind for kind in _KINDS}
"""The class of each stage by its name."""

DEFAULT_STAGE = "pretrain"
"""Of recipes that do not say."""
