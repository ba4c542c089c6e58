"""`docs/recipes.md`: every key of a recipe, printed from the schema itself.

`python -m dsv3_plugin.recipe.reference > docs/recipes.md` writes it; a test says when it is stale.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from dsv3_plugin.recipe import yaml_text
from dsv3_plugin.recipe.common import Common
from dsv3_plugin.recipe.curve import Piece
from dsv3_plugin.recipe.rules import RULES
from dsv3_plugin.recipe.schema import DEFAULT_STAGE, STAGES
from dsv3_plugin.recipe.section import Section
from dsv3_plugin.recipe.validation import fields_of, model_in

_HEAD = """\
# Recipes

A recipe is a YAML file that says everything about a run: the model, the data, what changes over the
tokens, and how the work is divided. `dsv3 train RECIPE` runs it, `dsv3 args RECIPE` prints what it
means on Megatron-LM's command line, `dsv3 plan RECIPE` says what it will take in memory, time and
money.

```yaml
base: pretrain/tiny              # a shipped recipe, or a file beside this one
model: {num_layers: 6, moe_layer_freq: "[0]*1+[1]*5"}
training: {steps: 500}
curves:
  learning_rate:
    - {linear: 4e-3, from: 0, for: 30 steps}
    - {cosine: 4e-4, for: 470 steps}
parallel: {processes: 2, expert: 2}
```

- **`base:`** names the recipe that this one builds on. Mappings merge key by key; everything else
  is replaced. `name` and `directory` are never inherited.
- **Overrides** on the command line win over the file: `dsv3 train pretrain/tiny training.steps=50
  curves.learning_rate=1e-3`.
- **Where names are found**: recipes, models, clusters and schedule files are looked for beside the
  file that names them, then among the shipped ones. All other paths are relative to the working
  directory.
- **Tokens** are written in full or as `120K`, `469B`, `14.8T`. Where steps may stand too, write
  `2000 steps`: they become tokens through the batch size in force there.
- **A curve** is a number, or a list of [pieces](#a-piece-of-a-curve) that follow one another. After
  its last piece it keeps its last value. A run resumes on all its curves from one number, the
  tokens consumed so far.
- **`auto`** is resolved where the recipe runs, and stays `auto` in what is written down. What it
  finds is held to [the rules](#what-cannot-be-combined) like anything else.
- **Numbers** are finite, and no value is turned into another type: `seed: "1"` is refused.

An unknown key is refused with the file, the path and the nearest key there is. A run keeps its
recipe in its folder as `recipe.yaml`, complete, with every default written out.

This page is printed by `python -m dsv3_plugin.recipe.reference`.
"""

_FILLED_IN = {
    "name": "as the file",
    "directory": "`runs/NAME`",
    "model.name": "as the file",
    "model.moe_layer_freq": "all MoE, or all dense without experts",
    "model.original_max_position_embeddings": "required with yarn",
}
"""What stands for a key that is required once a file has been read."""

_STAGE = {"enum": [*STAGES], "default": DEFAULT_STAGE}
"""What `stage` may be, over all classes of stages."""


def page() -> str:
    """The whole page, as Markdown."""
    return "\n".join([_HEAD, *_keys(), *_rules()])


def _keys() -> Iterator[str]:
    yield "## Keys of every recipe\n"
    yield from _table(Common)
    for name, kind in STAGES.items():
        yield f"## stage: {name}\n\n{_line(kind.__doc__)}\n"
        if own := fields_of(kind).keys() - fields_of(Common).keys():
            yield from _table(kind, only=own)
    yield from _nested(Common)
    yield f"## A piece of a curve\n\n{_line(Piece.__doc__)}\n"
    yield from _table(Piece)


def _rules() -> Iterator[str]:
    yield "## What cannot be combined\n"
    yield "What a recipe has to fulfil, looked at in this order; a refusal names the way out.\n"
    yield from (f"- {_line(rule.__doc__)}" for rule in RULES)
    yield ""


def _nested(kind: type[Section], path: str = "") -> Iterator[str]:
    """The sections inside a section, each followed by those inside it."""
    for key, field in fields_of(kind).items():
        section = model_in(field.annotation)
        if section is not None and section is not Piece:
            yield f"## {path}{key}\n\n{_line(section.__doc__)}\n"
            yield from _table(section, f"{path}{key}.")
            yield from _nested(section, f"{path}{key}.")


def _table(
    kind: type[Section], path: str = "", only: Collection[str] | None = None
) -> Iterator[str]:
    """A row for each key of a section, or for some only."""
    yield "| key | value | default | meaning |"
    yield "|---|---|---|---|"
    said = kind.model_json_schema()["properties"]
    for key, field in fields_of(kind).items():
        if only is None or key in only:
            schema = _STAGE if path + key == "stage" else said[key]
            value, default = _value(path + key, schema), _default(path + key, schema)
            yield f"| `{key}` | {value} | {default} | {_line(field.description)} |"
    yield ""


def _value(path: str, schema: Mapping[str, Any]) -> str:
    """What a key takes, in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_value(path, option) for option in schema["anyOf"]))
    if "$ref" in schema:
        return f"[mapping](#{path.replace('.', '')})"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("format") == "curve":
        return "[curve](#a-piece-of-a-curve)"
    if "format" in schema:
        return schema["format"]
    match schema["type"]:
        case "array":
            return f"list of {_value(path, schema['items'])}"
        case "object":
            return "mapping"
        case "boolean":
            return "`true`, `false`"
        case "null":
            return "`null`"
        case "string":
            return "text"
        case number:
            return number + ",".join(_limits(schema))


_WIDEST = 2**31 - 1
"""Of a `Size`, which need not be said of every one."""


def _limits(schema: Mapping[str, Any]) -> Iterator[str]:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    for name, sign in signs.items():
        if name in schema and schema[name] != _WIDEST:
            yield f" {sign} {schema[name]:.10g}"


def _default(path: str, schema: Mapping[str, Any]) -> str:
    if path in _FILLED_IN:
        return _FILLED_IN[path]
    if "default" not in schema:
        return "required"
    match schema["default"]:
        case dict():
            return ""
        case float(number):
            return f"`{number:g}`"
        case value:
            return f"`{yaml_text.dump({'it': value}).removeprefix('it: ').strip()}`"


def _line(text: str | None) -> str:
    """A docstring as one line of Markdown."""
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
