"""A model's layers over the rows of a batch, with cached latents.

The modules are the trainer's own, their parameters read where they lie: what training changes is
what the next step computes with. Upstream's `forward` of a layer is not called: it wants rectangles
[s, b, h], and every sequence here is at another position.
"""

import torch.nn.functional as F
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from dsv3_plugin.dispatch.moe_layer import MoELayer
from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.attention import Rotation, attend
from dsv3_plugin.inference.batch import Batch
from dsv3_plugin.inference.cache import LatentCache
from dsv3_plugin.inference.experts import moe, swiglu


def require_whole(model: GPTModel) -> None:
    """Look whether this rank can compute a model's tokens alone.

    Raises:
        UserError: it has not all of it, or is of Transformer Engine's modules.
    """
    config = model.config
    if config.transformer_impl != "local":
        raise UserError(
            f"The engine computes with torch's modules: build the model with backend: local, not "
            f"{config.transformer_impl}."
        )
    for name in (
        "tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size",
        "expert_model_parallel_size",
    ):  # fmt: skip
        if getattr(config, name) > 1:
            raise UserError(
                f"The engine computes a whole model on one rank, and this one is divided by "
                f"{name} {getattr(config, name)}: load it on one."
            )


def moe_layers_of(model: GPTModel) -> int:
    """How many of a model's layers route."""
    return sum(isinstance(layer.mlp, MoELayer) for layer in model.decoder.layers)


def hidden_states(
    model: GPTModel, batch: Batch, rotation: Rotation, cache: LatentCache
) -> tuple[Tensor, list[Tensor]]:
    """The main model's last hidden states, and where its tokens went.

    Returns:
        [t, h] after the final norm; of each MoE layer the experts of all rows, [t, top-k].
    """
    hidden = F.embedding(batch.ids, model.embedding.word_embeddings.weight)
    turned = rotation.of(batch.positions)
    experts: list[Tensor] = []
    for number, layer in enumerate(model.decoder.layers):
        hidden, chosen = layer_output(layer, hidden, batch, turned, cache, number)
        if chosen is not None:
            experts.append(chosen)
    return model.decoder.final_layernorm(hidden), experts


def layer_output(
    layer: TransformerLayer,
    hidden: Tensor,
    batch: Batch,
    rotation: Rotation,
    cache: LatentCache,
    number: int,
) -> tuple[Tensor, Tensor | None]:
    """A transformer layer of rows [t, h]: its output, and the experts of an MoE layer."""
    normed = layer.input_layernorm(hidden)
    hidden = hidden + attend(layer.self_attention, normed, batch, rotation, cache, number)
    normed, chosen = layer.pre_mlp_layernorm(hidden), None
    if isinstance(layer.mlp, MoELayer):
        added, chosen = moe(layer.mlp, normed)
    else:
        added = swiglu(layer.mlp, normed)
    return hidden + added, chosen


def logits(model: GPTModel, hidden: Tensor) -> Tensor:
    """FP32 logits [rows, vocab] of hidden states [rows, h]."""
    tied = model.share_embeddings_and_output_weights
    weight = model.shared_embedding_or_output_weight() if tied else model.output_layer.weight
    return F.linear(hidden, weight).float()
