"""A new recipe, written out with comments, from one there is.

It builds on no other: whatever it does not say has its default, and nothing is inherited unseen.
The lengths of its curves are shares of its budget, so that another budget has their shape.
"""

import itertools
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, get_origin

from dsv3_plugin.errors import UserError
from dsv3_plugin.numbers import number_of
from dsv3_plugin.recipe import shipped, yaml_text
from dsv3_plugin.recipe.amounts import format_tokens
from dsv3_plugin.recipe.curve import Curve
from dsv3_plugin.recipe.key_tables import plain
from dsv3_plugin.recipe.load import load_model
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.recipe.reference import TABLES
from dsv3_plugin.recipe.schema import DEFAULT_STAGE, Recipe
from dsv3_plugin.recipe.section import Section
from dsv3_plugin.recipe.validation import fields_of, model_in

_WIDTH = 100
_UNTOLD = {"name", "directory", "pipeline.devices"}
"""Keys that follow from the name of the file, or from others."""

_ARCHITECTURE = (
    "num_layers", "moe_layer_freq", "hidden_size", "ffn_hidden_size", "num_attention_heads",
    "q_lora_rank", "kv_lora_rank", "num_moe_experts", "moe_ffn_hidden_size",
    "moe_shared_expert_intermediate_size", "moe_router_topk", "moe_router_num_groups",
    "moe_router_group_topk", "mtp_num_layers",
)  # fmt: skip
"""Keys of a model that are shown to whoever may want another."""


def written_anew(recipe: Recipe, origin: str, tokens: int | None = None) -> str:
    """The text of a recipe that does what another does, each key with what it means.

    Args:
        recipe: the other one.
        origin: how a person calls it.
        tokens: another budget; the curves have their shape over it.

    Raises:
        UserError: another budget is given, and this one counts epochs.
    """
    if tokens is not None and recipe.training.epochs is not None:
        raise UserError(
            f"{origin} trains for {number_of(recipe.training.epochs, 'epoch')} of its "
            "conversations: leave the "
            "tokens out."
        )
    said = recipe.model_dump(mode="json", exclude_defaults=True)
    said["model"] = _model(recipe)
    said["data"]["corpus"] = recipe.data.corpus  # what a person changes first
    if recipe.stage != DEFAULT_STAGE:
        said["stage"] = recipe.stage
    if recipe.training.epochs is None:  # epochs of data are a length that suits them
        if said["training"].pop("steps", None) or tokens is not None:
            said["training"]["tokens"] = format_tokens(
                recipe.total_tokens if tokens is None else tokens
            )
        said["curves"] = _curves(recipe)
    head = (
        f"A recipe written from {origin}. `dsv3 explain KEY` says more of a key, and which others "
        "there are; what is not said here has its default."
    )
    lines = list(_keys(type(recipe), said))
    if isinstance(said["model"], dict) and "base" in said["model"]:
        base = lines.index(f"  base: {recipe.model.name}")
        own = len(said["model"]) - 1  # keys, each in a line
        shown = _what_could_be_changed(recipe.model, said["model"])
        lines[base + 1 : base + 1 + own] = [*shown, *lines[base + 1 : base + 1 + own], ""]
    text = "\n".join([*_comment(head), "", *lines])
    return re.sub(r"\n{3,}", "\n\n", text).rstrip("\n") + "\n"


def _model(recipe: Recipe) -> dict[str, Any]:
    """A shipped model as a base, with what is changed of it; else all of its keys."""
    model = recipe.model
    if model.name not in shipped.what_ships()["models"]:
        return model.to_mapping()
    base, own = load_model(model.name).to_mapping(), model.to_mapping()
    changes = {key: value for key, value in own.items() if base.get(key) != value}
    changes |= {key: None for key in base.keys() - own.keys()}
    return {"base": model.name} | changes


def _what_could_be_changed(model: ModelConfig, said: Mapping[str, Any]) -> Iterator[str]:
    """The keys by which models mostly differ, as comments that can be made keys by themselves."""
    meanings = {told.key: plain(told.meaning) for told in TABLES.told(ModelConfig, "model.")}
    mapping = model.to_mapping()
    yield from _comment("To change it, take the # off a line and give it another value:", "  ")
    for key in _ARCHITECTURE:
        if key in said or mapping.get(key) is None:
            continue
        line = f"  # {yaml_text.dump({key: mapping[key]}).strip()}"
        beside = f"{line}  # {meanings[key]}"
        yield beside if len(beside) <= _WIDTH else line


def _curves(recipe: Recipe) -> dict[str, Any]:
    """The curves with shares of the run as lengths; what lies beyond its end is drawn into it."""
    curves = vars(recipe.curves)
    ends = [boundary for curve in curves.values() for boundary in curve.boundaries]
    whole = max(recipe.total_tokens, *ends)
    return {name: _pieces(curve, whole) for name, curve in curves.items()}


def _pieces(curve: Curve, whole: int) -> float | list[dict[str, Any]]:
    """A curve as written, its places shares of so many tokens."""
    if len(curve.segments) == 1 and curve.segments[0].shape == "constant":
        return _number(curve.segments[0].last)
    shares = _shares([segment.end for segment in curve.segments], whole)
    pieces, before = [], None
    for segment, until in zip(curve.segments, shares, strict=True):
        piece: dict[str, Any] = {segment.shape: _number(segment.last)}
        if segment.shape != "constant" and segment.first != before:
            piece["from"] = _number(segment.first)
        if until is not None:
            piece["until"] = until
        pieces.append(piece)
        before = segment.last
    return pieces


def _number(value: float) -> float | int:
    """A whole number, of sequences say, without a point."""
    return int(value) if value.is_integer() else value


def _shares(ends: list[int | None], whole: int) -> list[str | None]:
    """Places as shares of the whole, with the digits that tell them from each other."""
    for digits in range(2, 13):
        shares = [None if end is None else round(100 * end / whole, digits) for end in ends]
        places = [0.0, *(share for share in shares if share is not None)]
        if all(one < next_ for one, next_ in itertools.pairwise(places)):
            break
    return [None if share is None else f"{share:.12g}%" for share in shares]


def _keys(kind: type[Section], said: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The keys of a section that are said, in the schema's order, each with what it means.

    `path` leads to the section ("training."). Around the sections of a recipe are empty lines.
    """
    indent = "  " * path.count(".")
    for told in TABLES.told(kind, path):
        key, here = told.key, path + told.key
        if key not in said or here in _UNTOLD:
            continue
        value, meaning = said[key], plain(told.meaning)
        annotation = fields_of(kind)[key].annotation
        inner = model_in(annotation)
        named = get_origin(annotation) is dict  # by a person, as rewards are
        if inner not in (None, ModelConfig) and isinstance(value, dict) and not named:
            inside = list(_keys(inner, value, f"{here}."))
            if inside or not value:
                head = f"{indent}{key}:" if inside else f"{indent}{key}: {{}}"
                yield from [head, *inside] if path else ["", head, *inside, ""]
            continue
        lines = [indent + line for line in _value(key, value)]
        beside = f"{lines[0]}  # {meaning}"
        if len(lines) == 1 and len(beside) <= _WIDTH:
            yield beside
        else:
            yield from _comment(meaning, indent)
            yield from lines


def _value(key: str, value: Any) -> Iterator[str]:
    """A key and its value in YAML; of a list of mappings, each in a line."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        yield f"{key}:"
        for item in value:
            inside = ", ".join(yaml_text.dump({name: it}).strip() for name, it in item.items())
            yield f"  - {{{inside}}}"
        return
    yield from yaml_text.dump({key: value}).splitlines()


def _comment(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
    )
