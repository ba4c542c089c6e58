"""How the run that another begins with was trained: as the recipe that makes it says, or otherwise.

A parent is what its own folder says it is. One that was trained by other settings to its end is
begun with as it is; one that was stopped on the way there would become neither the one nor the
other, if its recipe went on with it. No torch here.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dsv3_plugin.errors import UserError
from dsv3_plugin.launch.ending import is_done
from dsv3_plugin.recipe import corpora, yaml_text
from dsv3_plugin.recipe.differences import MISSING, Difference, differences
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.recipe.schema import Recipe

_DECIDES = (
    "stage", "model.", "data.", "training.", "curves.", "optimizer.", "precision.", "from", "mtp",
    "router", "rollouts.", "grpo.", "rewards.", "megatron_args.", "dispatch.precision",
)  # fmt: skip
"""What a run becomes is decided by these keys, and those below them."""

_NOT = {
    "model.name", "data.path", "data.sequences", "data.made_by", "training.micro_batch_size",
    "training.eval_interval", "training.eval_steps", "training.log_interval",
}  # fmt: skip
"""But not by these."""

_SHOWN = 3
"""Keys that a sentence names."""


@dataclass(frozen=True)
class Otherwise:
    """A parent that was trained by other settings than its recipe has today.

    Attributes:
        by: the recipe that makes it, as `parent_recipe` names it.
        kept: its own, which its folder keeps.
        changed: the keys that differ, with the value of `kept` first.
        saved: the step of its newest checkpoint.
        is_done: whether it was trained to its end, as `kept` has it.
    """

    by: str
    kept: Recipe
    changed: list[Difference]
    saved: int
    is_done: bool

    @property
    def used(self) -> str:
        """The sentence for one that is begun with as it is."""
        return (
            f"{self.kept.folder} was trained to its end with another {self._keys} than {self.by} "
            f"says now{self._values}, and is begun with as it is: move it away to have {self.by} "
            "make another."
        )

    @property
    def refusal(self) -> UserError:
        """What is said of one that is on the way."""
        own, by = shlex.quote(str(self.kept.run_folder.recipe)), shlex.quote(self.by)
        return UserError(
            f"{self.kept.folder} is at step {self.saved:,} of {self.kept.total_steps:,}, and was "
            f"trained with another {self._keys} than {self.by} says now{self._values}: finish it "
            f"with `dsv3 train {own}`, begin with it as it is by parent_recipe=null, or train "
            f"another with `dsv3 train {by} directory=PATH` and begin with that by from=PATH."
        )

    @property
    def _keys(self) -> str:
        names = [one.key for one in self.changed[:_SHOWN]]
        if more := len(self.changed) - len(names):
            names.append(f"{more} more")
        return ", ".join(names[:-1]) + " and " * (len(names) > 1) + names[-1]

    @property
    def _values(self) -> str:
        """Of one key that has short values, both."""
        [first, *others] = self.changed
        values = f" ({_text(first.a)} there, {_text(first.b)} in the recipe)"
        return "" if others or len(values) > 80 else values


def trained_otherwise(parent: Recipe, by: str) -> Otherwise | None:
    """How the run in a parent's folder was trained; None: as its recipe says, or nobody knows.

    Args:
        parent: the recipe that makes it.
        by: what `parent_recipe` calls that.
    """
    folder = parent.run_folder
    saved = folder.steps_saved()
    if not saved or not folder.recipe.is_file():
        return None
    try:
        written = yaml_text.read_mapping(folder.recipe)
        kept = load_recipe(folder.recipe, [f"directory={folder.root}"])
    except UserError:  # of another version of dsv3
        return None
    changed = _changed(written, yaml_text.parse(parent.to_yaml(), by))
    return Otherwise(by, kept, changed, saved, is_done(kept)) if changed else None


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """The keys of both that decide what a run becomes, and that differ."""
    return [
        one
        for one in differences(before, now)
        if one.key.startswith(_DECIDES) and one.key not in _NOT and not _same(one)
    ]


def _same(one: Difference) -> bool:
    """Whether a key was not known then, or names the same place in other words."""
    if MISSING in (one.a, one.b):
        return True
    return one.key in ("data.corpus", "from") and corpora.same(one.a, one.b)


def _text(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
