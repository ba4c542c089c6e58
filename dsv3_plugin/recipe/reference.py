"""`docs/recipes.md`: every key of a recipe, printed from the schema itself.

`python -m dsv3_plugin.recipe.reference > docs/recipes.md` writes it; a test says when it is stale.
"""

from collections.abc import Iterator

from dsv3_plugin.recipe.common import Common
from dsv3_plugin.recipe.curve import Piece
from dsv3_plugin.recipe.key_tables import KeyTables, one_line
from dsv3_plugin.recipe.rules import RULES
from dsv3_plugin.recipe.schema import DEFAULT_STAGE, STAGES
from dsv3_plugin.recipe.validation import fields_of

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
  is replaced. `name` and `directory` are never inherited. `key: null` takes back what was said of
  a key, which has its default then; where null is a value of the key, it has that.
- **Overrides** on the command line win over the file: `dsv3 train pretrain/tiny training.steps=50
  curves.learning_rate=1e-3`. `key=null` takes back there, too; `key=` is refused. `training.steps`,
  there or in a file over its base, takes the place of `tokens` and `epochs`, as each of them does
  of the others.
- **Where names are found**: recipes, models, clusters and schedule files are looked for beside the
  file that names them (a recipe, a model, a table of measured steps), then in the working
  directory, then among the shipped ones; what the command line names has no file beside it. All
  other paths are relative to the working directory.
- **Tokens** are written in full or as `120K`, `469B`, `14.8T`. Where steps may stand too, write
  `2000 steps`: they become tokens through the batch size in force there.
- **A share** of the run (`for: 10%`, `until: 90%`) may stand there too: a shorter run has the same
  shape. It is of the steps where the budget is `training.steps`, of the tokens else: where the
  batch grows, the first tenth of the steps is less than a tenth of the tokens.
- **A curve** is a number, or a list of [pieces](#a-piece-of-a-curve) that follow one another. After
  its last piece it keeps its last value. A run resumes on all its curves from one number, the
  tokens consumed so far.
- **`auto`** is resolved where the recipe runs, and stays `auto` in what is written down. What it
  finds is held to [the rules](#what-cannot-be-combined) like anything else.
- **Numbers** are finite, and no value is turned into another type: `seed: "1"` is refused.

An unknown key is refused with the file, the path and the nearest key there is. `dsv3 explain KEY`
says what this page says of it, and `dsv3 explain KEY RECIPE` its value in a recipe, too, or in a
run, and which file says so: its own, one it builds on, or none. A run keeps its recipe in its
folder as `recipe.yaml`, complete, with every default written out.

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

TABLES = KeyTables(
    _FILLED_IN,
    apart={Piece: "A piece of a curve"},
    # What it may be over all classes of stages.
    schemas={"stage": {"enum": [*STAGES], "default": DEFAULT_STAGE}},
)
"""How the keys of a recipe are told, here and by `dsv3 explain`."""


def page() -> str:
    """The whole page, as Markdown."""
    return "\n".join([_HEAD, *_keys(), *_rules()])


def _keys() -> Iterator[str]:
    yield "## Keys of every recipe\n"
    yield from TABLES.table(Common)
    for name, kind in STAGES.items():
        yield f"## stage: {name}\n\n{one_line(kind.__doc__)}\n"
        if own := fields_of(kind).keys() - fields_of(Common).keys():
            yield from TABLES.table(kind, only=own)
            yield from TABLES.nested(kind, only=own)
    yield from TABLES.nested(Common)
    yield from TABLES.told_apart()


def _rules() -> Iterator[str]:
    yield "## What cannot be combined\n"
    yield "What a recipe has to fulfil, looked at in this order; a refusal names the way out.\n"
    yield from (f"- {one_line(rule.__doc__)}" for rule in RULES)
    yield ""


if __name__ == "__main__":
    print(page(), end="")
