"""`dsv3 plan`: the counts of a recipe or a model, as a table or as JSON."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsv3_plugin.numbers import count_text
from dsv3_plugin.terminal.lines import note, say

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dsv3_plugin.recipe.model import ModelConfig


def plan(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE_OR_MODEL", help="Shipped name (pretrain/tiny, deepseek-v3) or path."
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.path=value, for a recipe.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    seq_length: Annotated[
        int | None,
        typer.Option(help="Tokens per sequence; a recipe knows its own, 4096 for a model.", min=1),
    ] = None,
) -> None:
    """Count parameters, and floating-point operations per token, exactly."""
    from dsv3_plugin.machine import Machine
    from dsv3_plugin.recipe.hf_config import why_not_exported
    from dsv3_plugin.recipe.load import load_recipe_or_model
    from dsv3_plugin.recipe.schema import Recipe
    from dsv3_plugin.training.resume import refuse_what_does_not_go_on

    found = load_recipe_or_model(what, overrides or [], Machine.here())
    model, length = found, 4096
    if isinstance(found, Recipe):
        refuse_what_does_not_go_on(found)
        model, length = found.model, found.data.seq_length
    unexportable = why_not_exported(model)
    if unexportable is not None:
        note(f"dsv3: it could be trained, and not exported: {unexportable}")
    counts = as_mapping(model, seq_length or length)
    if json:
        from json import dumps

        say(dumps(counts))
    else:
        from dsv3_plugin.terminal.console import Console

        Console().print(as_table(counts))


def as_mapping(model: "ModelConfig", seq_length: int) -> dict[str, Any]:
    """The counts under the names that `--json` prints.

    Args:
        model: what is counted.
        seq_length: tokens per sequence, which attention's cost depends on.
    """
    from dsv3_plugin.planner.counts import flops_per_token, parameter_counts

    counts, flops = parameter_counts(model), flops_per_token(model, seq_length)
    return {
        "model": model.name,
        "seq_length": seq_length,
        "parameters_total": counts.total,
        "parameters_main": counts.main,
        "parameters_active": counts.active,
        "flops_per_token_forward_backward": flops.total,
        "flops_per_token_forward_backward_main": flops.main,
        "layers": [
            {
                "kind": count.kind,
                "number": count.number,
                "parameters": count.held,
                "parameters_active": count.used,
                "flops_per_token_forward_backward": flop.forward_backward,
                "components": count.parameters,
            }
            for count, flop in zip(counts.layers, flops.layers, strict=True)
        ],
    }


def as_table(counts: dict[str, Any]) -> "RenderableType":
    """The same mapping for people."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from dsv3_plugin.terminal.console import styled

    summary = Table.grid(padding=(0, 2))
    summary.add_column(no_wrap=True)
    summary.add_column(no_wrap=True, justify="right")
    for name, number, remark in (
        ("parameters", counts["parameters_total"], "what a Hugging Face checkpoint holds"),
        ("main model", counts["parameters_main"], "without multi-token prediction"),
        ("active", counts["parameters_active"], "of it, multiplied with each token"),
        (
            "FLOPs/token",
            counts["flops_per_token_forward_backward"],
            f"forward and backward, sequences of {counts['seq_length']}",
        ),
        (
            "main model",
            counts["flops_per_token_forward_backward_main"],
            "without multi-token prediction",
        ),
    ):
        summary.add_row(styled(name), f"{number:,}", remark)

    layers = Table(box=None, padding=(0, 2, 0, 0))
    layers.add_column("one layer")
    for layer in counts["layers"]:
        layers.add_column(f"{layer['kind']} ×{layer['number']}", justify="right")
    components = dict.fromkeys(name for layer in counts["layers"] for name in layer["components"])
    for component in components:
        held = (layer["components"].get(component) for layer in counts["layers"])
        layers.add_row(component, *(count_text(number, 2) if number else "" for number in held))
    layers.add_section()
    for title, key in (
        ("parameters", "parameters"),
        ("active", "parameters_active"),
        ("FLOPs/token", "flops_per_token_forward_backward"),
    ):
        layers.add_row(styled(title), *(count_text(layer[key], 2) for layer in counts["layers"]))
    return Group(styled(counts["model"]), summary, Text(), layers)
