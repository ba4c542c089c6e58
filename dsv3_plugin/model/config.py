"""From a `ModelConfig` to upstream's `MLATransformerConfig`, with every trap of it set right.

`_architecture` says what a model means in upstream's fields. `transformer_config` makes a
configuration from it, `adjust_config` writes it over one that upstream made from a command line
(whose flags cannot carry all of it), and `mend_config` sets what holds for every model of the
family, for users who bring their own command line and no `ModelConfig`.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import MLATransformerConfig
from megatron.core.utils import init_method_normal

from dsv3_plugin.recipe import fields
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.upstream.quiet import without_warnings

Backend = Literal["local", "transformer_engine"]


def transformer_config(
    model: ModelConfig,
    *,
    backend: Backend = "local",
    dtype: torch.dtype = torch.float32,
    **overrides: Any,
) -> MLATransformerConfig:
    """Upstream's configuration of a model.

    Args:
        model: the model.
        backend: `local` computes with torch alone, `transformer_engine` with TE's kernels.
        dtype: of parameters and activations.
        overrides: further fields of MLATransformerConfig (parallel sizes, recompute, …); they win.
    """
    architecture = _architecture(model) | {
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "transformer_impl": backend,
        "moe_grouped_gemm": backend == "transformer_engine",
        "moe_token_dispatcher_type": "alltoall",
        "moe_permute_fusion": backend == "transformer_engine",
        # The fused wgrad kernel is Apex's; the local backend's linears accumulate by themselves.
        "gradient_accumulation_fusion": False,
        "bias_activation_fusion": True,
        "bias_dropout_fusion": True,
        "masked_softmax_fusion": False,
    }
    with without_warnings("full scope is deprecated"):  # its own default
        config = MLATransformerConfig(**architecture | overrides)
    mend_config(config)
    return config


def adjust_config(config: MLATransformerConfig, model: ModelConfig) -> None:
    """Make a configuration that upstream built from arguments mean exactly `model`, in place.

    For what the command line cannot say: YaRN's betas and original length in 0.19.2, output layers
    initialised like all others, the softmax scale of plain RoPE.
    """
    for field, value in _architecture(model).items():
        setattr(config, field, value)
    mend_config(config)


def mend_config(config: MLATransformerConfig) -> None:
    """Set what every model of the family has and upstream's defaults do not, in place.

    * With plain RoPE, upstream still multiplies the softmax scale by YaRN's mscale² unless the
      scaling factor is 1; neither DeepSeek's code nor transformers does.
    * Upstream's fused rotation (`apply_rope_fusion`) knows YaRN alone, and refuses plain RoPE.
      YaRN by factor 1 is plain RoPE: each frequency is a mean of itself and itself / 1, so angles
      differ by FP32's rounding, and both scales are 1.
    * All weights are drawn with one standard deviation (arXiv 2412.19437, section 4.2); upstream
      shrinks those of output projections by sqrt(2 · layers).
    * Routing is computed in FP32.
    """
    if config.rope_type == "rope":
        config.rotary_scaling_factor = 1.0
        config.mscale = config.mscale_all_dim = 1.0
        if config.apply_rope_fusion:
            config.rope_type = "yarn"
    config.init_method = init_method_normal(config.init_method_std)
    config.output_layer_init_method = init_method_normal(config.init_method_std)
    config.embedding_init_method = init_method_normal(config.init_method_std)
    if config.moe_router_dtype is None:
        config.moe_router_dtype = "fp32"


def _architecture(model: ModelConfig) -> dict[str, Any]:
    """What a model means, in the fields of MLATransformerConfig."""
    return fields.attributes(model) | {
        "num_query_groups": model.num_attention_heads,
        # What all of the family share.
        "normalization": "RMSNorm",
        "layernorm_zero_centered_gamma": False,
        "gated_linear_unit": True,
        "activation_func": F.silu,
        "add_bias_linear": False,
        "add_qkv_bias": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "multi_latent_attention": True,
        "qk_layernorm": True,
        "rotary_percent": 1.0,
        "rotary_interleaved": False,
        "moe_router_dtype": "fp32",
    }


def moe_pattern(config: MLATransformerConfig) -> list[int]:
    """Per layer: 1 MoE, 0 dense."""
    frequency = config.moe_layer_freq
    if config.num_moe_experts is None:
        return [0] * config.num_layers
    if isinstance(frequency, int):
        return [int(layer % frequency == 0) for layer in range(config.num_layers)]
    return list(frequency)
