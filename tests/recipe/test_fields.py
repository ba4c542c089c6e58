"""The table of model fields: a row each, and every row reached in every direction."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from dsv3_plugin.recipe.fields import (
    FIELDS,
    ROPE_SCALING,
    attributes,
    from_arguments,
    from_attributes,
)
from dsv3_plugin.recipe.hf_config import hf_config, model_from_hf
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.recipe.model import ModelConfig

_PUBLISHED = sorted((Path(__file__).parent / "published").glob("*.json"))

# Two models that between them say of every field something else than its default.
_ODD_V3 = ModelConfig(
    name="odd-v3", num_layers=5, hidden_size=96, vocab_size=128, max_position_embeddings=320,
    ffn_hidden_size=56, layernorm_epsilon=1e-5, init_method_std=0.01,
    share_embeddings_and_output_weights=True, num_attention_heads=6, q_lora_rank=24,
    kv_lora_rank=16, qk_head_dim=20, qk_pos_emb_head_dim=12, v_head_dim=14, rope_type="yarn",
    rotary_base=5000.0, rotary_scaling_factor=4.0, original_max_position_embeddings=80,
    beta_fast=16.0, beta_slow=2.0, mscale=0.7, mscale_all_dim=0.8, moe_layer_freq="[0]*2+[1]*3",
    num_moe_experts=12, moe_ffn_hidden_size=36, moe_shared_expert_intermediate_size=72,
    moe_router_topk=2, moe_router_num_groups=3, moe_router_group_topk=2,
    moe_router_topk_scaling_factor=1.5, moe_router_enable_expert_bias=True,
    moe_aux_loss_coeff=1e-3, moe_router_load_balancing_type="aux_loss", mtp_num_layers=2,
)  # fmt: skip
_ODD_V2 = ModelConfig(
    name="odd-v2", num_layers=3, hidden_size=64, vocab_size=128, max_position_embeddings=64,
    ffn_hidden_size=56, num_attention_heads=4, kv_lora_rank=16, qk_head_dim=8,
    qk_pos_emb_head_dim=4, v_head_dim=8, moe_layer_freq="[0]*1+[1]*2", num_moe_experts=8,
    moe_ffn_hidden_size=32, moe_shared_expert_intermediate_size=32, moe_router_topk=2,
    moe_router_score_function="softmax", moe_router_pre_softmax=True,
)  # fmt: skip
ODD = pytest.mark.parametrize("model", [_ODD_V3, _ODD_V2], ids=lambda model: model.name)


def test_every_field_has_one_row_and_every_row_a_field():
    assert [row.ours for row in FIELDS] == [*ModelConfig.model_fields]


@pytest.mark.parametrize("side", ["hf_key", "flag", "attribute"])
def test_no_two_rows_write_the_same(side):
    names = [getattr(row, side) for row in FIELDS if getattr(row, side) is not None]
    assert len(names) == len({*names})


def test_the_odd_models_leave_nothing_at_its_default():
    for name, field in ModelConfig.model_fields.items():
        said = {json.dumps(getattr(model, name)) for model in (_ODD_V2, _ODD_V3)}
        assert said - {json.dumps(field.default) if not field.is_required() else None}, name


@ODD
def test_to_hugging_face_and_back(model):
    written = json.loads(json.dumps(hf_config(model)))
    assert model_from_hf(written, model.name) == model


@pytest.mark.parametrize("path", _PUBLISHED, ids=lambda path: path.stem)
def test_from_hugging_face_and_back(path):
    published = json.loads(path.read_text())
    written = hf_config(model_from_hf(published, path.stem))
    scaling = published.get("rope_scaling") or {}
    for row in FIELDS:
        if row.hf_key in published:
            assert written[row.hf_key] == published[row.hf_key]
        elif row.of_yarn and scaling:
            key = row.hf_key.removeprefix(ROPE_SCALING)
            assert written["rope_scaling"][key] == scaling[key]


@ODD
def test_through_upstreams_parser_and_back(model, upstream, tmp_path):
    model.write(tmp_path / "model.yaml")
    shape = ["backend=local", "host=cpu", "precision={dtype: fp32}", "data.seq_length=64"]
    args = upstream(load_recipe("pretrain/tiny", [f"model={tmp_path}/model.yaml", *shape]))
    said = from_arguments(vars(args))
    for row in FIELDS:
        neutral = row.of_yarn and model.rope_type == "rope"  # whatever is said
        if row.flag is not None and not neutral:
            assert said.get(row.ours) == getattr(model, row.ours), row.ours


@ODD
def test_to_upstreams_attributes_and_back(model):
    said = from_attributes(SimpleNamespace(**attributes(model)))
    for row in FIELDS:
        if row.attribute is not None:
            assert said.get(row.ours) == getattr(model, row.ours), row.ours
