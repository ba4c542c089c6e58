"""What `dsv3 plan` says: the counts of a recipe or a model, as JSON or as a table."""

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dsv3_plugin.numbers import count_text
from dsv3_plugin.planner.counts import flops_per_token, parameter_counts
from dsv3_plugin.recipe.model import ModelConfig


def as_mapping(model: ModelConfig, seq_length: int) -> dict[str, Any]:
    """The counts under the names that `--json` prints.

    Args:
        model: what is counted.
        seq_length: tokens per sequence, which attention's cost depends on.
    """
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


def as_table(model: ModelConfig, seq_length: int) -> RenderableType:
    """The same for people."""
    plan = as_mapping(model, seq_length)
    summary = Table.grid(padding=(0, 2))
    summary.add_column(no_wrap=True)
    summary.add_column(no_wrap=True, justify="right")
    for name, number, note in (
        ("parameters", plan["parameters_total"], "what a Hugging Face checkpoint holds"),
        ("main model", plan["parameters_main"], "without multi-token prediction"),
        ("active", plan["parameters_active"], "of it, multiplied with each token"),
        (
            "FLOPs/token",
            plan["flops_per_token_forward_backward"],
            f"forward and backward, sequences of {seq_length}",
        ),
        (
            "main model",
            plan["flops_per_token_forward_backward_main"],
            "without multi-token prediction",
        ),
    ):
        summary.add_row(Text(name, style="bold"), f"{number:,}", note)

    layers = Table(box=None, padding=(0, 2, 0, 0))
    layers.add_column("one layer")
    for layer in plan["layers"]:
        layers.add_column(f"{layer['kind']} ×{layer['number']}", justify="right")
    components = dict.fromkeys(name for layer in plan["layers"] for name in layer["components"])
    for component in components:
        held = (layer["components"].get(component) for layer in plan["layers"])
        layers.add_row(component, *(count_text(number, 2) if number else "" for number in held))
    layers.add_section()
    for title, key in (
        ("parameters", "parameters"),
        ("active", "parameters_active"),
        ("FLOPs/token", "flops_per_token_forward_backward"),
    ):
        layers.add_row(
            Text(title, style="bold"), *(count_text(layer[key], 2) for layer in plan["layers"])
        )
    return Group(Text(model.name, style="bold"), summary, Text(), layers)
