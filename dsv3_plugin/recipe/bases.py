"""A recipe's or a model's file laid over what it builds on (`base:`), yet unchecked."""

from pathlib import Path
from typing import Any

from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe import shipped, yaml_text
from dsv3_plugin.recipe.finding import found, shipped_folder
from dsv3_plugin.recipe.merging import laid_over
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.recipe.schema import STAGES
from dsv3_plugin.recipe.validation import fields_of

_YAML = {".yaml", ".yml"}
_OF_RECIPES = {key for kind in STAGES.values() for key in fields_of(kind)}
_OF_MODELS_ALONE = fields_of(ModelConfig).keys() - _OF_RECIPES
_OF_RECIPES_ALONE = _OF_RECIPES - fields_of(ModelConfig).keys()


def is_a_model(path: Path, seen: tuple[Path, ...] = ()) -> bool:
    """Whether a file is a model, and no recipe.

    It is what it builds on, at the end of all bases; where that is not to be found, or goes round
    in a circle, or where a recipe's keys are said over a model, its own keys decide.
    """
    data = read(path)
    own = data.keys() - {"base"}
    if "model" in own:
        return False
    if (base := _base_of(data.get("base"), path)) is not None and path.resolve() not in seen:
        of_a_model = is_a_model(base, (*seen, path.resolve()))
        return of_a_model and not (own & _OF_RECIPES_ALONE and not own & _OF_MODELS_ALONE)
    return bool(own & _OF_MODELS_ALONE)


def _base_of(base: Any, path: Path) -> Path | None:
    """The file that a recipe or a model builds on, among recipes first; None: there is none."""
    if not isinstance(base, str):
        return None
    within = (shipped_folder(), shipped_folder() / "models")
    return next(filter(None, (shipped.existing(base, one, path.parent) for one in within)), None)


def with_bases(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """A file's mapping laid over its base's, its references made independent of where it lies."""
    _refuse_circle(path, seen)
    data = _anchor(read(path), path.parent)
    base = data.pop("base", None)
    if base is None:
        return laid_over({}, [data])
    if not isinstance(base, str):
        raise UserError(f"{path}: 'base' must be the name or path of a recipe.")
    below = _base_of(base, path)
    if below is not None and _is_plainly_a_model(below):
        raise UserError(
            f"{path}: base: {base} is a model, and this is a recipe: name it with `model: {base}`, "
            "and with base a recipe, such as pretrain/tiny."
        )
    below = with_bases(found(base, "", path, "base"), (*seen, path.resolve()))
    # A recipe is named by its own file, not by what it builds on.
    below.pop("name", None)
    below.pop("directory", None)
    return laid_over(below, [data])


def _is_plainly_a_model(path: Path) -> bool:
    """Whether a file's own keys are a model's, or its base a shipped one."""
    data = read(path)
    if "model" in data:
        return False
    own = data.keys() & (_OF_MODELS_ALONE | _OF_RECIPES_ALONE)
    base = data.get("base")
    is_shipped = isinstance(base, str) and base in shipped.names_in(shipped_folder() / "models")
    return (bool(own) and own <= _OF_MODELS_ALONE) or (is_shipped and not own)


def _refuse_circle(path: Path, seen: tuple[Path, ...]) -> None:
    """Raise UserError for a file that builds on itself, by way of those that it was reached by."""
    real = path.resolve()
    if real not in seen:
        return
    circle = [*seen[seen.index(real) :], real]
    around = f" ({' → '.join(one.name for one in circle)})" if len(circle) > 2 else ""
    raise UserError(f"{path}: builds on itself through base{around}: have it name another there.")


def read(path: Path) -> dict[str, Any]:
    """The mapping of a file; what is not called YAML may be something else, which is then said."""
    if path.suffix in _YAML:
        return yaml_text.read_mapping(path)
    try:
        data = yaml_text.read_mapping(path)
    except UserError as error:
        if isinstance(error.__cause__, OSError):
            raise
        raise UserError(f"{path} is no recipe or model, which are YAML (NAME.yaml).") from error
    known = {key for kind in (*STAGES.values(), ModelConfig) for key in fields_of(kind)}
    if data and not data.keys() & {"base", *known}:
        raise UserError(
            f"{path} has no key of a recipe or a model, which are YAML (NAME.yaml): name one, or a "
            "shipped recipe such as pretrain/tiny."
        )
    return data


def _anchor(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """References that exist beside the file become absolute."""

    def anchored(value: Any) -> Any:
        if isinstance(value, str) and (folder / value).is_file():
            return str((folder / value).resolve())
        return value

    model, pipeline = data.get("model"), data.get("pipeline")
    if isinstance(model, str):
        data["model"] = anchored(model)
    elif isinstance(model, dict) and "base" in model:
        data["model"] = model | {"base": anchored(model["base"])}
    if "cluster" in data:
        data["cluster"] = anchored(data["cluster"])
    if isinstance(pipeline, dict) and "schedule" in pipeline:
        data["pipeline"] = pipeline | {"schedule": anchored(pipeline["schedule"])}
    return data


def inline_model(model: Any, where: str) -> Any:
    """The model's own mapping: a name becomes its file's content, changes laid over it."""
    if isinstance(model, str):
        model = {"base": model}
    if not isinstance(model, dict) or "base" not in model:
        return model
    base = model["base"]
    if not isinstance(base, str):
        raise UserError(f"{where}: 'model.base' must be the name or path of a model.")
    changes = {key: value for key, value in model.items() if key != "base"}
    return {**model_with_bases(found(base, "models", where, "model"), ()), **changes}


def model_with_bases(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The mapping of a model's file laid over its base's; named by the file where it says none."""
    _refuse_circle(path, seen)
    data = yaml_text.read_mapping(path)
    if "model" in data:
        raise UserError(f"{path} is a recipe, and a model is asked for: name its model.")
    base = data.pop("base", None)
    if base is None:
        return {"name": path.stem, **data}
    if not isinstance(base, str):
        raise UserError(f"{path}: 'base' must be the name or path of a model.")
    if shipped.existing(base, shipped_folder() / "models", path.parent) is None and (
        shipped.existing(base, shipped_folder(), path.parent) is not None
    ):
        raise UserError(f"{path} is a recipe, and a model is asked for: name its model.")
    below = found(base, "models", path, "base")
    return {
        **model_with_bases(below, (*seen, path.resolve())),
        "name": path.stem,
        **data,
    }
