"""Configurations: the same from a model and from a command line, upstream's traps mended."""

import math

import pytest
import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.common.embeddings.yarn_rotary_pos_embedding import YarnRotaryEmbedding
from megatron.core.transformer.transformer_config import MLATransformerConfig

from dsv3_plugin.model.build import build_model
from dsv3_plugin.model.config import adjust_config, transformer_config
from dsv3_plugin.recipe.load import load_model
from tests import oracles

YARN = {
    "rope_type": "yarn", "rotary_scaling_factor": 40.0, "original_max_position_embeddings": 16,
    "beta_fast": 20.0, "beta_slow": 2.0, "mscale": 0.707, "mscale_all_dim": 0.707,
}  # fmt: skip


def test_adjusting_upstreams_config_gives_ours():
    # What upstream's arguments leave behind: its defaults where no flag reaches.
    model = oracles.model_config(mtp_num_layers=1, init_method_std=0.006, **YARN)
    wanted = transformer_config(model)
    config = MLATransformerConfig(
        num_layers=3, hidden_size=32, num_attention_heads=4, num_moe_experts=16,
        transformer_impl="local", moe_token_dispatcher_type="alltoall",
        params_dtype=torch.float32, add_bias_linear=False, gated_linear_unit=True,
    )  # fmt: skip
    adjust_config(config, model)
    methods = ("init_method", "output_layer_init_method", "embedding_init_method")
    for name in (*methods, "kv_channels"):
        delattr(wanted, name), delattr(config, name)
    differing = {
        name: (getattr(config, name, None), value)
        for name, value in vars(wanted).items()
        if getattr(config, name, None) != value
    }
    # Not the model's business: how it is computed.
    for name in ("pipeline_dtype", "bias_dropout_fusion", "masked_softmax_fusion",
                 "bias_activation_fusion", "embedding_init_method_std"):  # fmt: skip
        differing.pop(name, None)
    assert not differing


@pytest.mark.parametrize(("changes", "scale"), [({}, 1.0), (YARN, 0.0707 * math.log(40) + 1)])
def test_softmax_scale(changes, scale):
    # Plain RoPE scales by 1/sqrt(d) alone; upstream's default multiplies YaRN's mscale² in.
    built = build_model(oracles.model_config(**changes))
    attention = built.decoder.layers[0].self_attention
    assert attention.softmax_scale == pytest.approx(scale**2 / math.sqrt(12 + 8))


@pytest.mark.parametrize("fused", [False, True])
def test_plain_rope_is_called_yarn_where_the_fused_kernel_rotates(fused):
    config = transformer_config(oracles.model_config())
    config.apply_rope_fusion = fused
    adjust_config(config, oracles.model_config())
    assert config.rope_type == ("yarn" if fused else "rope")
    config.__post_init__()  # upstream's own checks
    assert config.rotary_scaling_factor == config.mscale == config.mscale_all_dim == 1.0


@pytest.mark.parametrize("name", ["deepseek-v3", "moonlight-16b-a3b", "tiny"])
def test_yarn_by_factor_1_rotates_as_plain_rope(name, world):
    model = load_model(name)
    length = min(model.max_position_embeddings, 8192)
    plain = RotaryEmbedding(model.qk_pos_emb_head_dim, 1.0, rotary_base=model.rotary_base)
    yarn = YarnRotaryEmbedding(
        model.qk_pos_emb_head_dim, rotary_base=model.rotary_base, scaling_factor=1.0,
        original_max_position_embeddings=length, mscale=1.0, mscale_all_dim=1.0,
    )  # fmt: skip
    angles, factor = yarn(length)
    assert factor == 1.0
    # A frequency is m · itself + (1 - m) · itself: two products and a sum, rounded once each.
    torch.testing.assert_close(angles, plain(length), rtol=3 * 2**-24, atol=0)


def test_yarn_by_factor_1_gives_the_logits_of_plain_rope(world):
    tokens = torch.randint(96, (2, 16), generator=torch.Generator().manual_seed(0))
    plain = build_model(oracles.model_config()).eval()
    yarn = build_model(oracles.model_config(), rope_type="yarn").eval()
    oracles.randomize(plain, seed=2)
    yarn.load_state_dict(plain.state_dict())
    with torch.no_grad():
        logits = [model(tokens, torch.arange(16).expand(2, 16), None) for model in (plain, yarn)]
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-6)


def test_every_matrix_is_drawn_with_one_standard_deviation():
    built = build_model(
        oracles.model_config(init_method_std=0.006, hidden_size=128, num_layers=8,
                             moe_layer_freq="[0]*1+[1]*7", mtp_num_layers=1)
    )  # fmt: skip
    for name, parameter in built.named_parameters():
        if parameter.dim() > 1:
            deviation = float(parameter.std()) / 0.006
            assert abs(deviation - 1) < 6 / math.sqrt(2 * parameter.numel()), name


def test_latent_norms_have_their_own_epsilon():
    layer = build_model(oracles.model_config(layernorm_epsilon=1e-5)).decoder.layers[1]
    assert layer.input_layernorm.eps == 1e-5
    assert layer.self_attention.q_layernorm.eps == layer.self_attention.kv_layernorm.eps == 1e-6
