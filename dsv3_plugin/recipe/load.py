"""From files and command-line overrides to a checked `Recipe` or `ModelConfig`.

A recipe is found, merged, validated key by key, and then held to the rules: as it is written, and
as it is on the machine where it will run. What is returned is what was written: `auto` stays.

A recipe file may build on another (`base:`): mappings merge key by key, everything else is
replaced. `base:`, `model:`, `cluster:` and a schedule's CSV are looked for beside the file that
names them, then among those shipped with the package; all other paths are relative to the working
directory.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.named import is_name
from dsv3_plugin.machine import Machine
from dsv3_plugin.recipe.bases import inline_model, is_a_model, model_with_bases, read, with_bases
from dsv3_plugin.recipe.finding import find, is_a_cluster, shipped_folder
from dsv3_plugin.recipe.merging import laid_over
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.recipe.overrides import (
    Override,
    overrides_that_cause,
    parse,
    refuse_taking_back_nothing,
    refuse_without_effect,
)
from dsv3_plugin.recipe.rules import first_broken
from dsv3_plugin.recipe.schema import DEFAULT_STAGE, STAGES, Recipe
from dsv3_plugin.recipe.stage_keys import without_keys_of_others
from dsv3_plugin.recipe.unset import without_unset
from dsv3_plugin.recipe.validation import validate
from dsv3_plugin.recipe.yaml_text import quoted


def load_recipe(
    name_or_path: str | Path, overrides: Sequence[str] = (), machine: Machine | None = None
) -> Recipe:
    """The recipe of a shipped name (`pretrain/tiny`) or of a YAML file's path.

    Args:
        name_or_path: where it is.
        overrides: `key.sub=value` texts (see `overrides`); they win over the file.
        machine: where it will run, so that what `backend: auto` finds there is held to the rules
            too; None: anywhere.

    Raises:
        UserError: one sentence naming the file, the key and the way out.
    """
    path = find(str(name_or_path))
    _refuse_empty(path)
    if is_a_model(path):
        raise UserError(
            f"{path} is a model, and a recipe is asked for: name the model in one with "
            f"`model: {path.name}`, or begin with the recipe pretrain/tiny."
        )
    data = with_bases(path, ())
    if not data.keys() & {"model", "stage"} and data.keys() & {"gpus", "gpus_per_node"}:
        raise is_a_cluster(path)
    where = str(path)
    given = [parse(text) for text in overrides]
    try:
        return _checked(data, path, given, machine)
    except UserError as error:
        said = _blaming(str(error), where, given)
        if said == str(error) and said.startswith(f"{where}: "):

            def without(kept: Sequence[Override]) -> str | None:
                return _refused(data, path, kept, machine)

            about = [one.text for one in overrides_that_cause(said, given, without)]
            said = f"{where}{' with ' * bool(about)}{' '.join(about)}{said.removeprefix(where)}"
        raise UserError(_as_overrides(said, where)) from error


def _as_overrides(sentence: str, where: str) -> str:
    """A sentence on a model that overrides are wrong about, with what it says to write in its file
    (`key: value`) as overrides, which a shell takes as they are."""
    if not sentence.startswith(f"{where} with ") or ": model: " not in sentence:
        return sentence
    return re.sub(
        r'`(\w+): "?([^`"]*)"?`', lambda key: shlex.quote(f"model.{key[1]}={key[2]}"), sentence
    )


def _refused(
    data: dict[str, Any], path: Path, overrides: Sequence[Override], machine: Machine | None
) -> str | None:
    """The sentence in which a recipe is refused; None: it is not."""
    try:
        _checked(data, path, overrides, machine)
    except UserError as error:
        return str(error)
    return None


def _refuse_empty(path: Path) -> None:
    """Raise UserError for a file that says nothing."""
    if not read(path):
        raise UserError(
            f"{path} says nothing: write a recipe there, such as `base: pretrain/tiny` and what is "
            "to be changed of it, or have one written by dsv3 init NAME."
        )


def stage_of(name_or_path: str | Path, overrides: Sequence[str] = ()) -> type[Recipe]:
    """The class of a recipe's stage, without a look at the rest of it.

    Raises:
        UserError: there is no such recipe or stage, or an override is none.
    """
    path = find(str(name_or_path))
    return _stage_with(with_bases(path, ()), [parse(text) for text in overrides], str(path))


def _stage_with(data: Mapping[str, Any], overrides: Sequence[Override], where: str) -> type[Recipe]:
    stages = [one for one in overrides if one.keys == ("stage",)]
    if stages and not stages[-1].value:
        raise stages[-1].without_value(takes_back=True)
    said = {"stage": None if stages[-1].takes_back else stages[-1].value} if stages else {}
    return _stage({**data, **said}, where)


def _checked(
    data: dict[str, Any], path: Path, overrides: Sequence[Override], machine: Machine | None
) -> Recipe:
    """The recipe of a file's mapping and what is laid over it."""
    where = str(path)
    kind = _stage_with(data, overrides, where)
    refuse_without_effect(overrides, where)
    refuse_taking_back_nothing(overrides, kind, data, where)
    data = {**laid_over(data, [override.read(kind) for override in overrides])}
    if data.get("name") is None:
        data["name"] = path.stem
    if isinstance(data["name"], str) and data.get("directory") is None:
        data["directory"] = f"runs/{data['name']}"
    if "model" in data:
        data["model"] = inline_model(data["model"], where)
    _refuse_what_no_file_can_hold(data, where)
    data = without_keys_of_others(kind, data, where)
    recipe = validate(kind, without_unset(kind, data), where)
    _check(recipe, machine, where)
    return recipe


def changed(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """A recipe with `key.path=value` texts laid over it, held to the rules like any other.

    Raises:
        UserError: one sentence naming the recipe, the key and the way out.
    """
    data = recipe.model_dump(mode="json") | {"model": recipe.model.to_mapping()}
    data = laid_over(data, [parse(text).read(type(recipe)) for text in overrides])
    over = validate(type(recipe), without_unset(type(recipe), data), recipe.name)
    _check(over, None, recipe.name)
    return over


def _refuse_what_no_file_can_hold(data: Any, where: str, path: str = "") -> None:
    """Texts of a recipe become names of files, arguments of Megatron and files of UTF-8."""
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            _refuse_what_no_file_can_hold(value, where, f"{path}.{key}" if path else str(key))
    elif isinstance(data, str) and not is_name(data):
        raise UserError(
            f"{where}: '{path}' holds characters that are not UTF-8, or a zero byte ({data}): "
            "choose another name."
        )


def _blaming(sentence: str, where: str, overrides: Sequence[Override]) -> str:
    """A sentence on a recipe, with the overrides in it that it is about."""
    wrong = sentence.partition(" (nearest: ")[0]

    def names(words: str) -> bool:
        return re.search(rf"(?<![\w.-]){re.escape(words)}(?![\w-])", wrong) is not None

    about = [override.text for override in overrides if names(override.path)]
    if not about and (
        unknown := re.match(r"(?:unknown key )?'([^']*)'", wrong.removeprefix(f"{where}: "))
    ):
        # A section that is not there, around the key that was written.
        about = [one.text for one in overrides if one.path.startswith(f"{unknown[1]}.")]
    if not about and (emptied := re.match(r"([\w.]+) is empty", wrong.removeprefix(f"{where}: "))):
        about = [one.text for one in overrides if one.path.startswith(f"{emptied[1]}.")]
    if not about and wrong.startswith(f"{where}: model: "):
        # A model speaks of its keys alone, which may contradict what the file says of others.
        about = [one.text for one in overrides if one.keys[0] == "model" and names(one.keys[-1])]
    if not about or not sentence.startswith(f"{where}: "):
        return sentence
    return f"{where} with {' '.join(about)}{sentence.removeprefix(where)}"


def _stage(data: Mapping[str, Any], where: str) -> type[Recipe]:
    """The class of the recipe's stage."""
    name = DEFAULT_STAGE if data.get("stage") is None else data["stage"]
    if not isinstance(name, str) or name not in STAGES:
        raise UserError(
            f"{where}: there is no stage {quoted(name)}; the stages are {', '.join(STAGES)}."
        )
    return STAGES[name]


def _check(recipe: Recipe, machine: Machine | None, where: str) -> None:
    """Raise UserError with the first sentence, if any rule is broken.

    The host stays as written: whether every rank has its GPU is looked at when ranks start.
    """
    if sentence := first_broken(recipe):
        raise UserError(f"{where}: {sentence}.")
    if machine is None or recipe.backend != "auto":
        return
    backend = recipe.resolved_backend(machine)
    if sentence := first_broken(recipe.model_copy(update={"backend": backend})):
        raise UserError(f"{where}: {sentence} (backend: auto finds {backend} on this machine).")


def load_model(name_or_path: str | Path) -> ModelConfig:
    """The model of a shipped name (`tiny`, `deepseek-v3`) or of a YAML file's path, which may build
    on another (`base:`)."""
    path = find(str(name_or_path), "models")
    data = without_unset(ModelConfig, model_with_bases(path, ()))
    return validate(ModelConfig, data, str(path))


def load_recipe_or_model(
    name_or_path: str, overrides: Sequence[str] = (), machine: Machine | None = None
) -> Recipe | ModelConfig:
    """A recipe or a model, whichever the name or the file is.

    A model's name wins over a recipe's; a file is what it builds on.
    """
    if (shipped_folder() / "models" / f"{name_or_path}.yaml").is_file():
        name_or_path = f"models/{name_or_path}"
    path = find(name_or_path, models=True)
    _refuse_empty(path)
    if not is_a_model(path):
        return load_recipe(path, overrides, machine)
    if overrides:
        raise UserError(
            f"{path} is a model, which takes no overrides: name a recipe, such as pretrain/tiny, "
            f"with model={name_or_path.removeprefix('models/')} and model.KEY=VALUE."
        )
    return load_model(path)
