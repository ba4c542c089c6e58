"""What a model is called, wherever people are told."""

from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.recipe.shipped import shipped_folder


def told_name(model: ModelConfig) -> str:
    """The name of the shipped model that differs in nothing but its name, or the model's own.

    A model that was imported has its folder's name as its own.
    """
    for path in sorted((shipped_folder("recipes") / "models").glob("*.yaml")):
        if ModelConfig.read(path).model_copy(update={"name": model.name}) == model:
            return path.stem
    return model.name
