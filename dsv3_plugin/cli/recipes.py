"""`dsv3 recipes` and `dsv3 explain`: what ships, and what the keys of a recipe mean."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsv3_plugin.cli import completion
from dsv3_plugin.cli.options import Json
from dsv3_plugin.errors import UserError
from dsv3_plugin.terminal.lines import say, say_all, say_json

if TYPE_CHECKING:
    from dsv3_plugin.recipe.explained import Explained, Place
    from dsv3_plugin.recipe.key_tables import Told
    from dsv3_plugin.recipe.model import ModelConfig
    from dsv3_plugin.recipe.schema import Recipe

_MOST_DIGITS = 1e15
"""Whole numbers below it are written as such, and those beyond as powers of ten."""


def recipes(as_json: Json = False) -> None:
    """List the recipes, models and clusters that come with dsv3, a line each."""
    from dsv3_plugin.recipe.shipped import what_ships

    ships = what_ships()
    if as_json:
        say_json(ships)
        return
    widest = max(len(name) for said in ships.values() for name in said)
    for kind, said in ships.items():
        say(kind)
        say_all(f"  {name:{widest}}  {summary}" for name, summary in said.items())


def explain(
    key: Annotated[
        str | None,
        typer.Argument(
            help="A key (training.eval_steps), a section (data), or a word to look for (experts); "
            "by default what there is.",
            autocompletion=completion.keys,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="Say what it is in this recipe, too (name or path).",
            autocompletion=completion.recipes,
        ),
    ] = None,
) -> None:
    """Explain a key of a recipe: what it takes, its default, what it means."""
    from dsv3_plugin.recipe.explained import Place, explained, having, sections
    from dsv3_plugin.recipe.load import load_recipe_or_model
    from dsv3_plugin.recipe.model import ModelConfig

    if key is None:
        say("A recipe is made of these; dsv3 explain KEY says more of one, such as data:")
        say_all(_one_line_each(sections()))
        return
    asked = None if recipe is None else _recipe_at(recipe)
    loaded = None if asked is None else load_recipe_or_model(asked)
    if isinstance(loaded, ModelConfig) and key in loaded.to_mapping():
        key = f"model.{key}"
    try:
        meanings = explained(key)
    except UserError:
        if recipe is not None or not (found := having(key)):
            raise
        say(f"No key of a recipe is '{key}'; these are called so, or speak of it:")
        say_all(_one_line_each(found))
        return
    for meaning, stages in meanings.items():
        say(Place(key, tuple(stages)).title)
        say_all(_lines(meaning))
    if isinstance(loaded, ModelConfig):
        say_all(["", *_in_model(recipe, loaded, key)])
    elif loaded is not None:
        stages = [stage for those in meanings.values() for stage in those]
        say_all(["", *_in_recipe(recipe, asked, loaded, key, stages)])


def _in_model(name: str, loaded: "ModelConfig", key: str) -> Iterator[str]:
    """What a key is in a model, or that there is none."""
    from dsv3_plugin.recipe import yaml_text

    own, said = key.removeprefix("model."), loaded.to_mapping()
    if own not in said:
        yield f"{name} is a model, which has no such key."
        return
    yield f"in {name}:"
    yield f"  {yaml_text.dump({own: _as_written(said[own])}).strip()}"


def _in_recipe(
    name: str, asked: str, loaded: "Recipe", key: str, stages: Sequence[str]
) -> Iterator[str]:
    """What a key is in a recipe, or that there is none.

    Args:
        name: of the recipe, as it was given.
        asked: where it is.
        loaded: the recipe.
        key: with its sections, by dots.
        stages: that have such a key.
    """
    from dsv3_plugin.recipe import yaml_text
    from dsv3_plugin.recipe.explained import OF_FILES, Absent, value_in
    from dsv3_plugin.recipe.said_by import built_on

    if loaded.stage not in stages:
        yield f"{name} is of stage {loaded.stage}, which has no such key."
        return
    if key in OF_FILES:
        said = built_on(asked, key)
        yield f"{name} says no {key} of its own." if said is None else f"in {name}:"
        if said is not None:
            yield f"  {yaml_text.dump({key: said}).strip()}"
        return
    last, value = value_in(loaded, key)
    if isinstance(value, Absent):
        there = f" has {', '.join(value.names)} alone" if value.names else " is empty"
        yield f"{name} has no {key}: its {value.section}{there}."
        return
    yield f"in {name}, {_whose(asked, key)}:"
    yield from (f"  {line}" for line in yaml_text.dump({last: _as_written(value)}).splitlines())


def _recipe_at(name: str) -> str:
    """A recipe as it was named, or that of a run."""
    from dsv3_plugin.recipe.places import run_at

    run = run_at(name) if Path(name).is_dir() else None
    return name if run is None or not run.recipe.is_file() else str(run.recipe)


def _whose(recipe: str, key: str) -> str:
    """Which file a recipe has the value of a key from."""
    from dsv3_plugin.recipe.said_by import said_by

    files = said_by(recipe, key)
    if len(files) > 1:
        return f"as {', '.join(files[:-1])} and {files[-1]} say"
    return f"as {files[0]} says" if files else "by default"


def _one_line_each(found: "Mapping[Place, Told]") -> Iterator[str]:
    """Keys, and what each means."""
    from dsv3_plugin.recipe.key_tables import plain

    widest = max(len(place.title) for place in found)
    for place, told in found.items():
        yield f"  {place.title:{widest}}  {plain(told.meaning)}"


def _lines(meaning: "Explained") -> Iterator[str]:
    """What a key takes and means, and what is in it."""
    from dsv3_plugin.recipe.key_tables import plain

    told = meaning.told
    for what, text in (("takes", told.value), ("default", told.default)):
        if text and plain(text) != "mapping":
            yield f"  {what:8} {plain(text)}"
    yield f"  {plain(told.meaning)}"
    widest = max((len(inside.key) for inside in meaning.keys), default=0)
    for inside in meaning.keys:
        yield f"    {inside.key:{widest}}  {plain(inside.meaning)}"


def _as_written(value: Any) -> Any:
    """Whole numbers without a fraction, as people write them, whatever type their key has."""
    if isinstance(value, dict):
        return {key: _as_written(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_as_written(one) for one in value]
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < _MOST_DIGITS
    return int(value) if is_whole else value
