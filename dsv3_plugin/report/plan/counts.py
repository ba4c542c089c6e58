"""What a model holds and computes, exactly: as a table, and as JSON has it."""

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dsv3_plugin.numbers import count_text
from dsv3_plugin.planner.counts import flops_per_token, parameter_counts
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.terminal.console import styled


def counts_mapping(model: ModelConfig, seq_length: int) -> dict[str, Any]:
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


def counts_table(counts: dict[str, Any]) -> RenderableType:
    """The same mapping for people."""
    return Group(counts_summary(counts), Text(), _layers(counts))


def counts_summary(counts: dict[str, Any]) -> RenderableType:
    """The counts of the whole model."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
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
        table.add_row(styled(name), f"{number:,}", remark)
    return Group(styled(counts["model"]), table)


def _layers(counts: dict[str, Any]) -> RenderableType:
    """One layer of each kind by component."""
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
    return layers
