"""Curves over tokens, and the batch that they give."""

from collections.abc import Iterator

from dsv3_plugin.recipe.schema import Recipe


def curves(recipe: Recipe) -> Iterator[str]:
    """Every curve can be resolved, and has values that make sense."""
    try:
        resolved = recipe.curves
    except ValueError as error:
        yield str(error)
        return
    for name in ("learning_rate", "router_bias_speed", "mtp_weight"):
        lowest = getattr(resolved, name).minimum
        if lowest < 0:
            yield f"curves.{name} goes below 0 ({lowest:g}): give values of 0 or more"
