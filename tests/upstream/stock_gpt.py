"""A GPT as upstream builds it, with nothing of ours."""

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig

VOCABULARY = 32
TOKENS = torch.randint(VOCABULARY, (2, 8), generator=torch.Generator().manual_seed(0))
"""[b, s]"""


def stock_gpt(vp_stage: int | None = None, **changes: Any) -> GPTModel:
    """This rank's stage of a dense GPT of four layers, freshly drawn."""
    settings: dict[str, Any] = {
        "num_layers": 4,
        "hidden_size": 16,
        "num_attention_heads": 4,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "normalization": "RMSNorm",
        "pipeline_dtype": torch.float32,
    }
    config = TransformerConfig(**settings | changes)
    return GPTModel(
        config=config,
        transformer_layer_spec=get_gpt_layer_local_spec(normalization="RMSNorm"),
        vocab_size=VOCABULARY,
        max_sequence_length=8,
        pre_process=parallel_state.is_pipeline_first_stage(False, vp_stage),
        post_process=parallel_state.is_pipeline_last_stage(False, vp_stage),
        vp_stage=vp_stage,
    )
