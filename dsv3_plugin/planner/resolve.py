"""What a recipe leaves open, closed by what the planner finds out.

`pipeline.layout: balanced` becomes the layout string that runs. Whoever runs a recipe, plans it or
prints its arguments loads it here, and gets the same answer on every rank.
"""

from collections.abc import Sequence
from pathlib import Path

from dsv3_plugin.errors import UserError
from dsv3_plugin.machine import Machine
from dsv3_plugin.planner.cluster import Cluster, load_cluster
from dsv3_plugin.planner.layout.of_recipe import balanced_layout
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.recipe.rules import first_broken
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.recipe.sections import BALANCED


def load_resolved(name_or_path: str | Path, overrides: Sequence[str], machine: Machine) -> Recipe:
    """The recipe of a name or a path, as `load_recipe` finds it, with nothing left open.

    Raises:
        UserError: as `load_recipe`, and as `resolve`.
    """
    return resolve(load_recipe(name_or_path, overrides, machine), machine)


def resolve(
    recipe: Recipe,
    machine: Machine,
    cluster: Cluster | None = None,
    *,
    must_fit: bool = True,
) -> Recipe:
    """The recipe with what it leaves open to the planner decided; itself where that is nothing.

    Args:
        recipe: as it was loaded.
        machine: where it will run.
        cluster: what it is planned for; None: what the recipe names.
        must_fit: refuse what fits into its memory in no layout; a plan says itself what is missing,
            and what was measured did fit.

    Raises:
        UserError: there is no such cluster, or the model does not fit into its memory.
    """
    if recipe.pipeline.layout != BALANCED:
        return recipe
    if cluster is None:
        cluster = load_cluster(recipe.cluster_on(machine))
    layout = balanced_layout(recipe, machine, cluster, must_fit=must_fit)
    pipeline = recipe.pipeline.model_copy(update={"layout": layout})
    closed = recipe.model_copy(update={"pipeline": pipeline})
    if sentence := first_broken(closed):
        raise UserError(f"{recipe.name}: {sentence}.")
    return closed
