"""The one function that builds models.

Everything outside upstream's own trainer makes its models here: logits, generation, conversion,
tests. Upstream calls GPTModel deprecated in favour of HybridModel; when the family moves there,
this function is what changes.
"""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection

from dsv3_plugin.model.config import Backend, transformer_config
from dsv3_plugin.model.layers import mtp_block_spec
from dsv3_plugin.model.specs import deepseek_v3_spec
from dsv3_plugin.recipe.model import ModelConfig


def build_model(
    model: ModelConfig,
    *,
    backend: Backend = "local",
    dtype: torch.dtype = torch.float32,
    pre_process: bool = True,
    post_process: bool = True,
    pg_collection: ProcessGroupCollection | None = None,
    vp_stage: int | None = None,
    **overrides: Any,
) -> GPTModel:
    """Build a model, or one pipeline stage of it, with freshly drawn weights.

    It lies where this rank computes.

    Megatron's parallel state must be initialised (`distributed.world.single_process`).

    Args:
        model: what to build.
        backend: `local` (torch) or `transformer_engine`.
        dtype: of the parameters.
        pre_process: build the embedding (first stage).
        post_process: build the final norm and the output head (last stage).
        pg_collection: process groups; Megatron's global ones by default.
        vp_stage: virtual pipeline stage.
        overrides: fields of MLATransformerConfig; `perform_initialization=False` leaves the
            weights undrawn when they are about to be loaded.
    """
    config = transformer_config(model, backend=backend, dtype=dtype, **overrides)
    layers = deepseek_v3_spec(config, vp_stage=vp_stage)
    with _without_recommendation():
        built = GPTModel(
            config=config,
            transformer_layer_spec=layers,
            mtp_block_spec=mtp_block_spec(config, layers, vp_stage=vp_stage),
            vocab_size=model.vocab_size,
            max_sequence_length=model.max_position_embeddings,
            pre_process=pre_process,
            post_process=post_process,
            share_embeddings_and_output_weights=model.share_embeddings_and_output_weights,
            position_embedding_type="rope",  # MLA rotates its own heads; inputs get nothing added
            rotary_base=model.rotary_base,
            pg_collection=pg_collection,
            vp_stage=vp_stage,
        )
    # Routers and the norms of `local` are made on the host; upstream's trainer moves its models.
    meta = any(parameter.is_meta for parameter in built.parameters())
    return built if meta or config.use_cpu_initialization else built.cuda()


@contextlib.contextmanager
def _without_recommendation() -> Iterator[None]:
    """Upstream recommends HybridModel to whoever builds a GPTModel; see the top of this file."""
    logger = logging.getLogger("megatron.core.models.gpt.gpt_model")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
