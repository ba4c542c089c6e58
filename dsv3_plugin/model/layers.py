"""Which modules a layer of a DeepSeek model is built of, for both backends.

`stage_layers` and `mtp_block_spec` make the layers and the multi-token prediction layers of a
pipeline stage, in upstream's form.
"""

import dataclasses
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_with_transformer_engine_spec,
    get_gpt_mtp_block_spec,
)
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.transformer.enums import AttnMaskType, LayerType
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.moe_layer import MoESubmodules
from megatron.core.transformer.multi_latent_attention import MLASelfAttentionSubmodules
from megatron.core.transformer.multi_token_prediction import (
    MultiTokenPredictionBlockSubmodules,
    MultiTokenPredictionLayer,
    MultiTokenPredictionLayerSubmodules,
    get_mtp_num_layers_to_build,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import MLATransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayerSubmodules,
    get_transformer_layer_offset,
)

from dsv3_plugin.dispatch.moe_layer import MoELayer
from dsv3_plugin.dispatch.shared_expert import SharedExpertInSteps
from dsv3_plugin.model.attention import LatentAttention
from dsv3_plugin.model.config import moe_pattern
from dsv3_plugin.model.core_attention import CausalAttention
from dsv3_plugin.model.experts import GroupedExperts
from dsv3_plugin.model.layer import DeepSeekLayer
from dsv3_plugin.model.linear import ColumnLinear, RowLinear
from dsv3_plugin.model.moe import LocalMoELayer
from dsv3_plugin.model.norm import RMSNorm
from dsv3_plugin.model.router import DeepSeekRouter
from dsv3_plugin.model.swiglu import DenseMLP, SharedExpert
from dsv3_plugin.model.te_attention import group_attention
from dsv3_plugin.model.te_experts import experts_for

# Norms that Transformer Engine fuses into the linear layer behind them. Saved under its names, a
# checkpoint of either backend is loaded by both (upstream's post-training spec does the same).
_FUSED_KV_NORM = {
    "self_attention.kv_layernorm.": "self_attention.linear_kv_up_proj.layer_norm_",
}
_FUSED_NORMS = _FUSED_KV_NORM | {
    "self_attention.q_layernorm.": "self_attention.linear_q_up_proj.layer_norm_",
}
_FUSED_DENSE = {"pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_"}


class DeepSeekLayers(TransformerBlockSubmodules):
    """Layers that `stage_layers` made: their multi-token prediction is ours too."""


def stage_layers(config: MLATransformerConfig, vp_stage: int | None = None) -> DeepSeekLayers:
    """The decoder layers of this rank's pipeline stage.

    Args:
        config: of the whole model.
        vp_stage: virtual pipeline stage, where there are several.
    """
    kinds = {is_moe: layer_spec(config, is_moe=bool(is_moe)) for is_moe in set(moe_pattern(config))}
    layers = [kinds[is_moe] for is_moe in moe_pattern(config)]
    layout = config.pipeline_model_parallel_layout
    if layout is not None:
        stage = layout.get_layer_id_list(layer_type=LayerType.decoder, vp_stage=vp_stage)
        layers = [layers[index] for index in stage]
    else:
        first = get_transformer_layer_offset(config, vp_stage=vp_stage)
        layers = layers[first : first + get_num_layers_to_build(config, vp_stage=vp_stage)]
    return DeepSeekLayers(layer_specs=layers, layer_norm=_norm(config))


def mtp_block_spec(
    config: Any, transformer_layer_spec: Any = None, vp_stage: int | None = None
) -> MultiTokenPredictionBlockSubmodules | None:
    """The multi-token prediction layers of this stage, None where there are none.

    The signature is that of `megatron.training.models.gpt.mtp_block_spec`. Each MTP layer holds a
    transformer layer of the last main layer's kind, as in DeepSeek-V3.
    """
    config = transformer_of(config)
    if not config.mtp_num_layers:
        return None
    block = layer_spec(config, is_moe=bool(moe_pattern(config)[-1]))
    if _with_te(config):
        # Upstream takes a layer of its own class alone, or the last of several of any.
        layers = TransformerBlockSubmodules(layer_specs=[block], layer_norm=_norm(config))
        return get_gpt_mtp_block_spec(
            config, layers, use_transformer_engine=True, vp_stage=vp_stage
        )
    count = get_mtp_num_layers_to_build(config, vp_stage=vp_stage)
    if count == 0:
        return None
    layer = ModuleSpec(
        module=MultiTokenPredictionLayer,
        submodules=MultiTokenPredictionLayerSubmodules(
            enorm=RMSNorm,
            hnorm=RMSNorm,
            eh_proj=ColumnLinear,
            mtp_model_layer=block,
            layer_norm=RMSNorm,
        ),
    )
    return MultiTokenPredictionBlockSubmodules(layer_specs=[layer] * count)


def choose_mtp_block_spec(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps upstream's `mtp_block_spec`, which its builder calls without asking `--spec`."""

    @wraps(original)
    def chosen(config: Any, transformer_layer_spec: Any, vp_stage: int | None = None) -> Any:
        ours = isinstance(transformer_layer_spec, DeepSeekLayers)
        make = mtp_block_spec if ours else original
        return make(config, transformer_layer_spec, vp_stage=vp_stage)

    return chosen


def layer_spec(config: MLATransformerConfig, *, is_moe: bool) -> ModuleSpec:
    """One transformer layer of the configured backend, dense or MoE."""
    make = _te_layer if _with_te(config) else _local_layer
    return make(config, is_moe=is_moe)


def _local_layer(config: MLATransformerConfig, *, is_moe: bool) -> ModuleSpec:
    attention = ModuleSpec(
        module=LatentAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=MLASelfAttentionSubmodules(
            linear_q_proj=ColumnLinear,
            linear_q_down_proj=ColumnParallelLinear,  # LatentAttention makes it ours
            linear_q_up_proj=ColumnLinear,
            linear_kv_down_proj=ColumnParallelLinear,
            linear_kv_up_proj=ColumnLinear,
            core_attention=CausalAttention,
            linear_proj=RowLinear,
            q_layernorm=RMSNorm,
            kv_layernorm=RMSNorm,
        ),
    )
    swiglu = MLPSubmodules(linear_fc1=ColumnLinear, linear_fc2=RowLinear)
    if is_moe:
        mlp = partial(
            LocalMoELayer,
            submodules=MoESubmodules(
                experts=GroupedExperts,
                shared_experts=partial(SharedExpert, submodules=swiglu),
                router=DeepSeekRouter,
            ),
        )
    else:
        mlp = partial(
            DenseMLP.as_mlp_submodule, submodules=swiglu, ffn_hidden_size=config.ffn_hidden_size
        )
    return ModuleSpec(
        module=DeepSeekLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=attention,
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=RMSNorm,
            mlp=mlp,
            mlp_bda=get_bias_dropout_add,
            sharded_state_dict_keys_map=_FUSED_NORMS if is_moe else _FUSED_NORMS | _FUSED_DENSE,
        ),
    )


def _te_layer(config: MLATransformerConfig, *, is_moe: bool) -> ModuleSpec:
    """Upstream's Transformer Engine layer; ours are the router, dispatch and latent norms' eps."""
    spec = get_gpt_layer_with_transformer_engine_spec(
        num_experts=config.num_moe_experts if is_moe else None,
        moe_grouped_gemm=config.moe_grouped_gemm,
        qk_layernorm=config.qk_layernorm,
        multi_latent_attention=True,
        use_te_activation_func=config.use_te_activation_func,
    )
    spec.module = DeepSeekLayer
    attention = spec.submodules.self_attention
    attention.module = LatentAttention
    if config.context_parallel_size > 1:
        # Latents are gathered when they are normed: the norm stands alone, as the local backend's.
        from megatron.core.extensions.transformer_engine import TEColumnParallelLinear, TENorm

        core = attention.submodules.core_attention
        attention.submodules = dataclasses.replace(
            attention.submodules,
            kv_layernorm=TENorm,
            linear_kv_up_proj=TEColumnParallelLinear,
            core_attention=group_attention(core),
        )
        spec.submodules.sharded_state_dict_keys_map = (
            spec.submodules.sharded_state_dict_keys_map | _FUSED_KV_NORM
        )
    if is_moe:
        moe = spec.submodules.mlp
        submodules = moe.keywords["submodules"]
        experts = experts_for(config, submodules.experts)
        submodules = dataclasses.replace(submodules, router=DeepSeekRouter, experts=experts)
        if not config.use_grouped_gemm_for_shared_expert:  # whose one kernel has no steps
            in_steps = partial(SharedExpertInSteps, **submodules.shared_experts.keywords)
            submodules = dataclasses.replace(submodules, shared_experts=in_steps)
        spec.submodules.mlp = partial(MoELayer, submodules=submodules)
    return spec


def transformer_of(config: Any) -> MLATransformerConfig:
    """The layers' configuration inside upstream's of a model, or itself."""
    return getattr(config, "transformer", config)


def _with_te(config: MLATransformerConfig) -> bool:
    return config.transformer_impl == "transformer_engine"


def _norm(config: MLATransformerConfig) -> Any:
    if not _with_te(config):
        return RMSNorm
    from megatron.core.extensions.transformer_engine import TENorm

    return TENorm
