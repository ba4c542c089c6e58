"""What a shell completes a word to: names that ship, keys of a recipe, and YAML files.

Where nothing begins as the word does, a shell goes on with its own files and folders.
"""

from collections.abc import Callable
from pathlib import Path

Completed = Callable[[str], list[str]]
"""From the beginning of a word to what it may become."""

_YAML = ("*.yaml", "*.yml")


def names(*kinds: str, files: bool = True) -> Completed:
    """Completes to what ships of some kinds.

    Args:
        kinds: as `what_ships` has them (`recipes`, `models`, `clusters`).
        files: whether YAML files do as well.
    """

    def complete(beginning: str) -> list[str]:
        from dsv3_plugin.recipe.shipped import what_ships

        ships = what_ships()
        shipped = [name for kind in kinds for name in ships[kind] if name.startswith(beginning)]
        return [*shipped, *(yaml_files(beginning) if files else [])]

    return complete


def schedules_and_recipes(beginning: str) -> list[str]:
    """What `dsv3 schedule` shows: a schedule, or a recipe's."""
    from dsv3_plugin.schedules.registry import SCHEDULES

    return [*(name for name in SCHEDULES if name.startswith(beginning)), *recipes(beginning)]


def keys(beginning: str) -> list[str]:
    """Keys of a recipe of any stage, by dots; those in a section once it alone is meant."""
    from dsv3_plugin.recipe.explained import OF_FILES, paths
    from dsv3_plugin.recipe.schema import STAGES

    every = dict.fromkeys(OF_FILES)
    every |= dict.fromkeys(path for kind in STAGES.values() for path in paths(kind))
    levels: dict[int, list[str]] = {}
    for path in every:
        if path.startswith(beginning):
            levels.setdefault(path.count("."), []).append(path)
    first, *below = (levels[depth] for depth in sorted(levels)) if levels else ([],)
    return [*first, *below[0]] if len(first) == 1 and below else first


def yaml_files(beginning: str) -> list[str]:
    """YAML files of the folder that the beginning of a path is in."""
    folder, _, name = beginning.rpartition("/")
    at = Path(folder or ("/" if beginning.startswith("/") else "."))
    try:
        files = sorted(file for pattern in _YAML for file in at.glob(pattern) if file.is_file())
    except OSError:
        return []
    head = beginning.removesuffix(name)
    return [head + file.name for file in files if file.name.startswith(name)]


recipes = names("recipes")
models = names("models")
recipes_and_models = names("recipes", "models")
clusters = names("clusters")
