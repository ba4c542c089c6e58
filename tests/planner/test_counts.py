"""Counts against published numbers and against transformers' own modules."""

import pytest

from dsv3_plugin.planner.counts import flops_per_token, parameter_counts
from dsv3_plugin.recipe.hf_config import hf_config
from dsv3_plugin.recipe.load import load_model


def test_deepseek_v3_exactly():
    counts = parameter_counts(load_model("deepseek-v3"))
    # The published checkpoint, multi-token prediction with its copies and all router biases.
    assert counts.total == 684_489_845_504
    # The main model: 671,026,404,352 weights and 58 × 256 router biases.
    assert counts.main == 671_026_404_352 + 58 * 256


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("deepseek-v3", 671e9, 37e9),
        ("deepseek-v2", 236e9, 21e9),
        ("deepseek-v2-lite", 15.7e9, 2.4e9),
        ("moonlight-16b-a3b", 16e9, 2.6e9),
        ("kimi-k2", 1.03e12, 32e9),
    ],
)
def test_published_sizes(name, total, active):
    counts = parameter_counts(load_model(name))
    assert counts.main == pytest.approx(total, rel=0.005)
    assert counts.active == pytest.approx(active, rel=0.025)


def test_published_flops_of_deepseek_v3():
    flops = flops_per_token(load_model("deepseek-v3"), 4096)
    assert flops.total == pytest.approx(260.6e9, rel=3e-4)
    assert flops.main == pytest.approx(250.4e9, rel=3e-4)


@pytest.mark.parametrize("name", ["tiny", "deepseek-v3", "deepseek-v2", "kimi-k2"])
def test_layers_add_up(name):
    model = load_model(name)
    counts, flops = parameter_counts(model), flops_per_token(model, 2048)
    held = sum(layer.number * layer.held for layer in counts.layers)
    copies = 2 * model.vocab_size * model.hidden_size * (model.mtp_num_layers or 0)
    assert held + copies == counts.total
    assert sum(layer.number * layer.forward_backward for layer in flops.layers) == flops.total
    blocks = [layer.number for layer in counts.layers if layer.kind in ("dense", "moe")]
    assert sum(blocks) == model.num_layers
    # 6 operations per active weight, and attention on top.
    assert flops.main > 6 * (counts.active - sum(
        layer.number * (layer.parameters.get("norms", 0) + layer.parameters.get("router_bias", 0))
        for layer in counts.layers
    ))  # fmt: skip


def _changed(**changes):
    tiny = load_model("tiny")
    return type(tiny)(**(tiny.to_mapping() | changes))


@pytest.mark.parametrize(
    "model",
    [
        load_model("tiny"),
        _changed(q_lora_rank=None, mtp_num_layers=2),
        _changed(share_embeddings_and_output_weights=True, mtp_num_layers=None),
        _changed(
            moe_router_score_function="softmax", moe_router_pre_softmax=True, mtp_num_layers=None,
            moe_router_enable_expert_bias=False, moe_shared_expert_intermediate_size=96,
            moe_layer_freq="[0]*2+[1]*2",
        ),
    ],
    ids=["tiny", "no q latent, 2 mtp", "tied", "v2"],
)  # fmt: skip
def test_transformers_holds_as_many_values(model):
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(**hf_config(model))
    with torch.device("meta"):
        main = transformers.AutoModelForCausalLM.from_config(config)
    tensors = dict(main.named_parameters())
    biases = sum(
        buffer.numel() for name, buffer in main.named_buffers() if "e_score_correction" in name
    )
    counts = parameter_counts(model)
    assert sum(tensor.numel() for tensor in tensors.values()) + biases == counts.main
    if model.mtp_num_layers:
        from transformers.modeling_layers import MtpModel

        with torch.device("meta"):
            mtp = MtpModel(main, model.mtp_num_layers)
        # MtpModel shares the embedding and the head; the checkpoint repeats them per depth.
        shared = model.vocab_size * model.hidden_size
        layers = sum(tensor.numel() for tensor in mtp.layers.parameters()) + sum(
            buffer.numel() for name, buffer in mtp.layers.named_buffers() if "e_score" in name
        )
        assert counts.main + layers + model.mtp_num_layers * 2 * shared == counts.total


_GLM_4_7_FLASH = """\
# GLM-4.7-Flash as its config.json has it (glm4_moe_lite): a model that the package does not know.
num_layers: 47
hidden_size: 2048
vocab_size: 154880
max_position_embeddings: 202752
ffn_hidden_size: 10240
layernorm_epsilon: 1e-5
num_attention_heads: 20
q_lora_rank: 768
kv_lora_rank: 512
qk_head_dim: 192
qk_pos_emb_head_dim: 64
v_head_dim: 256
rotary_base: 1000000.0
moe_layer_freq: "[0]*1+[1]*46"
num_moe_experts: 64
moe_ffn_hidden_size: 1536
moe_shared_expert_intermediate_size: 1536
moe_router_topk: 4
moe_router_topk_scaling_factor: 1.8
moe_router_enable_expert_bias: true
mtp_num_layers: 1
"""


def test_another_family_member_from_a_yaml_alone(tmp_path):
    import torch
    import transformers

    path = tmp_path / "glm-4.7-flash.yaml"
    path.write_text(_GLM_4_7_FLASH)
    counts = parameter_counts(load_model(str(path)))
    # transformers' own class, whose defaults are this model.
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model("glm4_moe_lite")
        )
    biases = sum(b.numel() for name, b in theirs.named_buffers() if "e_score" in name)
    assert counts.main == sum(p.numel() for p in theirs.parameters()) + biases
    assert counts.main == 29_943_390_976 + 46 * 64
    # "30B-A3B", the embedding's lookup aside.
    assert counts.active == pytest.approx(3.6e9, rel=0.05)
