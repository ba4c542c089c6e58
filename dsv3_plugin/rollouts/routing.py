"""Where a server says that tokens went, held against the model in training."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dsv3_plugin.inference.routed_experts import Experts
from dsv3_plugin.recipe.model import ModelConfig


@dataclass(frozen=True)
class Routing:
    """What a token's way through a model looks like.

    Attributes:
        layers: of the model.
        moe_layers: numbers, from 0, of those that route.
        top_k: experts of a token in each that does.
        experts: that there are in each.
    """

    layers: int
    moe_layers: tuple[int, ...]
    top_k: int
    experts: int

    @classmethod
    def of(cls, model: ModelConfig) -> "Routing":
        """Of a model with experts."""
        return cls(
            model.num_layers,
            tuple(model.moe_layers),
            model.moe_router_topk,
            model.num_moe_experts,
        )

    def of_tokens(self, told: Experts, tokens: int) -> Tensor | None:
        """The experts of a text's first tokens, int32 [tokens, MoE layers, top-k]; None where that
        is not what was told.

        Args:
            told: as it came, in its shape or flat: of layers that route, or of all (SGLang), where
                what is said of the others does not count.
            tokens: whose experts are to be there.
        """
        for layers in {len(self.moe_layers), self.layers}:
            shape = tokens, layers, self.top_k
            if told.shape in (shape, (math.prod(shape),)):
                break
        else:
            return None
        found = told.reshape(shape)
        if layers == self.layers:
            found = found[:, list(self.moe_layers)]
        if found.size and not 0 <= found.min() <= found.max() < self.experts:
            return None
        return torch.from_numpy(found.astype(np.int32))
