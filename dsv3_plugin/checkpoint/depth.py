"""How many layers the weights in a folder have, by the names of their tensors."""

import re
from collections.abc import Iterable

from dsv3_plugin.checkpoint.names import CONFIG_KEYS, config_key
from dsv3_plugin.numbers import number_of
from dsv3_plugin.recipe.model import ModelConfig

_IN_LAYER = re.compile(r"model\.layers\.(\d+)\.")


def another_depth(names: Iterable[str], model: ModelConfig) -> str | None:
    """That weights have another number of layers than config.json says, as the end of a sentence.

    Args:
        names: of the tensors, as Hugging Face has them.
        model: that config.json describes.

    Returns:
        None: as far as names tell, they have that many.
    """
    layers = {name: int(found[1]) for name in names if (found := _IN_LAYER.match(name))}
    predicting = [layers[name] for name in layers if config_key(name) == CONFIG_KEYS["mtp"]]
    found = min(predicting, default=max(layers.values(), default=-1) + 1)
    if found in (0, model.num_layers):
        return None
    before = " before that of multi-token prediction" if predicting else ""
    return (
        f"these weights have {number_of(found, 'layer')}{before}, and num_hidden_layers is "
        f"{model.num_layers}: take config.json and weights of one model"
    )
