"""The model types of Hugging Face that are this family, one row each, and how they differ.

All of them compute the same layers; they differ in how experts are scored and chosen, and in what
their `config.json` calls things. A further member is a further row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dsv3_plugin.recipe.model import ModelConfig


@dataclass(frozen=True)
class Family:
    """What one `model_type` of a `config.json` means.

    Attributes:
        form: the `model_type` under which transformers computes the model without remote code.
        architecture: transformers' class for it.
        score_function: how the router scores experts. Sigmoid scores come with a balancing bias
            and renormalised gates, softmax scores with neither.
        topk_methods: `topk_method` without groups of experts, and with groups.
        aux_loss_alpha: the balance loss's factor in the family's report, for configs without it.
        unknown: published keys that the family's code does not have.
        renamed: the family's spelling of a key → the published spelling of the others.
        inside: the key of the object that describes the language model, None: the config itself.
    """

    form: str
    architecture: str
    score_function: Literal["sigmoid", "softmax"]
    topk_methods: tuple[str, str]
    aux_loss_alpha: float
    unknown: frozenset[str] = frozenset()
    renamed: Mapping[str, str] = field(default_factory=dict)
    inside: str | None = None

    def published(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A parsed `config.json` in the spelling that the published ones have in common."""
        described = config if self.inside is None else config.get(self.inside) or {}
        spelled = {self.renamed.get(key, key): value for key, value in described.items()}
        return spelled | {"model_type": config["model_type"]}


_V2 = Family(
    form="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    score_function="softmax",
    topk_methods=("greedy", "group_limited_greedy"),
    aux_loss_alpha=0.003,  # α1 of arXiv 2405.04434, §3.1.2
    unknown=frozenset({"num_nextn_predict_layers"}),
)
_V3 = Family(
    form="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    score_function="sigmoid",
    topk_methods=("noaux_tc", "noaux_tc"),
    aux_loss_alpha=0.0001,  # α of arXiv 2412.19437, §4.2
)

FAMILIES: dict[str, Family] = {"deepseek_v2": _V2, "deepseek_v3": _V3, "kimi_k2": _V3}
"""By `model_type`."""


def family_of(model: ModelConfig) -> Family:
    """The family in whose form a model is written."""
    return _V3 if model.moe_router_score_function == "sigmoid" else _V2
