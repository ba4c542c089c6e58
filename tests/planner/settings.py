"""Settings to plan for, made from recipes as users write them."""

from dsv3_plugin.machine import Machine
from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.time.recipe_steps import RecipeSteps
from dsv3_plugin.recipe.load import load_recipe

GPUS = Machine(gpus=8, transformer_engine=True)
LAPTOP = Machine(gpus=0, transformer_engine=False)


def steps_of(recipe: str, *overrides: str, cluster: str = "h800") -> RecipeSteps:
    """The steps of a shipped recipe with overrides, on a shipped cluster."""
    machine = LAPTOP if recipe.endswith("tiny") else GPUS
    loaded, where = load_recipe(recipe, overrides, machine), load_cluster(cluster)
    return RecipeSteps(loaded, Setting.of(loaded, where, machine), where)


def setting_of(recipe: str, *overrides: str, cluster: str = "h800") -> Setting:
    """The same, as a setting alone."""
    return steps_of(recipe, *overrides, cluster=cluster).setting
