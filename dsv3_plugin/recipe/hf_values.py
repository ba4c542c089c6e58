"""How single values of a model stand in a `config.json`: readers and writers for the field table.

A reader takes the config in its published spelling (`hf_config.published`), the key of the row and
the family, and raises ValueError with the sentence. A writer takes our value and the model.
"""

from collections.abc import Callable, Mapping
from typing import Any

from dsv3_plugin.recipe.families import Family, family_of
from dsv3_plugin.recipe.model import MOST_LAYERS, ModelConfig
from dsv3_plugin.recipe.yaml_text import quoted

Config = Mapping[str, Any]
Reader = Callable[[Config, str, Family], Any]
Writer = Callable[[Any, ModelConfig], Any]

_ABSENT = object()


def at(config: Config, key: str, absent: Any = None) -> Any:
    """What a config says under a key, which is dotted where it lies inside another."""
    *outer, last = key.split(".")
    for name in outer:
        config = config[name]
    return config.get(last, absent)


def whole(config: Config, key: str, family: Family) -> int:
    """A whole number that has to be there."""
    return _whole(at(config, key), key)


def whole_or_null(config: Config, key: str, family: Family) -> int | None:
    """A whole number, or none where the key is there and null.

    Absent is neither: DeepSeek's code and transformers then take V3's number.
    """
    value = at(config, key, absent=_ABSENT)
    if value is _ABSENT:
        raise ValueError(f"the key '{key}' is missing; null says that there is none")
    return None if value is None else _whole(value, key)


def number(config: Config, key: str, family: Family) -> float:
    """A number that has to be there."""
    value = at(config, key)
    if value is None:
        raise ValueError(f"the key '{key}' is missing or null")
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{key.rpartition('.')[2]} {quoted(value)} is not a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{key} is larger than any number that is computed with") from None


def number_or(default: float) -> Reader:
    """A number; absent and null both mean `default`."""

    def read(config: Config, key: str, family: Family) -> float:
        return default if at(config, key) is None else number(config, key, family)

    return read


def unchecked(default: Any) -> Reader:
    """Whatever is there, for `ModelConfig` to look at; absent means `default`."""
    return lambda config, key, family: at(config, key, default)


def _whole(value: Any, key: str) -> int:
    if value is None:
        raise ValueError(f"the key '{key}' is missing or null")
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{key} {quoted(value)} is not a whole number")
    if abs(value) >= 2**63:
        raise ValueError(f"{key} is a number of more than 19 digits, as no size is")
    return value


def layer_kinds(config: Config, key: str, family: Family) -> list[int]:
    """Per layer 0 or 1 from the number of dense layers, which come first.

    It has to be there: absent, it is 0 to DeepSeek's code and 3 to transformers.
    """
    layers = whole(config, "num_hidden_layers", family)
    dense = min(_whole(config.get(key), key), layers)
    if layers > MOST_LAYERS:
        raise ValueError(f"num_hidden_layers {layers} is more than {MOST_LAYERS:,}")
    if dense < 0:
        raise ValueError(f"{key} {dense} is negative")
    return [0] * dense + [1] * (layers - dense)


def number_of_dense_layers(layer_kinds: list[int], model: ModelConfig) -> int:
    return layer_kinds.count(0)


def shared_width(config: Config, key: str, family: Family) -> int | None:
    """The summed width of the shared experts, from their number; they are as wide as the others."""
    experts, width = (whole(config, name, family) for name in (key, "moe_intermediate_size"))
    return experts * width or None


def number_of_shared_experts(width: int, model: ModelConfig) -> int:
    return width // model.moe_ffn_hidden_size


def score_function(config: Config, key: str, family: Family) -> str:
    """The family's own: its code computes one way and ignores what the config says."""
    said = config.get(key, family.score_function)
    if said != family.score_function:
        raise ValueError(
            f"{key} '{said}' is not supported with model_type '{config['model_type']}', only "
            f"'{family.score_function}'"
        )
    return said


def keeps_gates(config: Config, key: str, family: Family) -> bool:
    """Whether gates stay as they are scored over all experts (`norm_topk_prob` false).

    A single chosen expert has nothing to share its gate with, so its gate is never renormalised.
    """
    score, chosen = family.score_function, whole(config, "num_experts_per_tok", family)
    normalised = score == "sigmoid" and chosen > 1
    said = bool(config.get(key, normalised))
    if said != normalised:
        raise ValueError(
            f"{key} {str(said).lower()} is not supported with scoring_func '{score}' and {chosen} "
            "experts per token"
        )
    return score == "softmax"


def renormalises_gates(keeps_gates: bool, model: ModelConfig) -> bool:
    return not keeps_gates and model.moe_router_topk > 1


def has_bias(config: Config, key: str, family: Family) -> bool:
    """Whether experts are chosen with a balancing bias, as every `noaux_tc` is."""
    return _topk_method(config, family) == "noaux_tc"


def topk_method(has_bias: bool, model: ModelConfig) -> str:
    return family_of(model).topk_methods[model.moe_router_num_groups is not None]


def groups(config: Config, key: str, family: Family) -> int | None:
    """`n_group` or `topk_group`, where the method of choosing experts looks at groups.

    They have to be there: absent, they end DeepSeek's code, and are 8 and 4 to transformers.
    """
    method = _topk_method(config, family)
    if method != family.topk_methods[1]:
        return None
    if None in (config.get("n_group"), config.get("topk_group")):
        raise ValueError(
            f"topk_method '{method}' needs n_group and topk_group (1 and 1: no groups)"
        )
    return config[key]


def _topk_method(config: Config, family: Family) -> str:
    said = config.get("topk_method", family.topk_methods[0])
    if said not in family.topk_methods:
        known = " and ".join(dict.fromkeys(family.topk_methods))
        raise ValueError(
            f"topk_method '{said}' is not supported with scoring_func "
            f"'{family.score_function}', only {known}"
        )
    return said


def balance_factor(config: Config, key: str, family: Family) -> float:
    """The factor of the balance loss; absent means the report's, not that there is none."""
    return number_or(family.aux_loss_alpha)(config, key, family)


def balancing(config: Config, key: str, family: Family) -> str:
    """Over what the auxiliary loss is taken, from `seq_aux`."""
    return "seq_aux_loss" if config.get(key, True) else "aux_loss"


def balances_sequences(balancing: str, model: ModelConfig) -> bool:
    return balancing != "aux_loss"


def rope_type(config: Config, key: str, family: Family) -> str:
    """ "yarn": where there is a `rope_scaling`, it is that."""
    if (said := at(config, key)) != "yarn":
        raise ValueError(f"rope type '{said}' is not supported, only default and yarn")
    return said


def original_length(config: Config, key: str, family: Family) -> Any:
    """Positions before they were stretched; absent means as many as there are now."""
    return at(config, key, config["max_position_embeddings"])


def itself(value: Any, model: ModelConfig) -> Any:
    return value


def or_else(default: float) -> Writer:
    """The value, or what `None` means."""
    return lambda value, model: default if value is None else value
