"""config.json ↔ ModelConfig, against the published configs and transformers' own classes."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe.families import FAMILIES
from dsv3_plugin.recipe.hf_config import (
    brought_up_to_date,
    hf_config,
    model_from_hf,
    read_hf_model,
)
from dsv3_plugin.recipe.load import load_model

PUBLISHED = {
    path.stem: json.loads(path.read_text())
    for path in sorted((Path(__file__).parent / "published").glob("*.json"))
}
NAMES = [*PUBLISHED, "tiny"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_shipped_model_is_the_published_one(name):
    ours, theirs = load_model(name).model_dump(), model_from_hf(PUBLISHED[name], name).model_dump()
    if name == "deepseek-v3":
        # The report trained with these; the published config carries the family's defaults.
        assert (ours.pop("init_method_std"), theirs.pop("init_method_std")) == (0.006, 0.02)
        assert (ours.pop("moe_aux_loss_coeff"), theirs.pop("moe_aux_loss_coeff")) == (1e-4, 1e-3)
    assert ours == theirs


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_config_is_written_back(name):
    published = PUBLISHED[name]
    written = hf_config(
        model_from_hf(published, name),
        bos_token_id=published["bos_token_id"],
        eos_token_id=published["eos_token_id"],
    )
    for key in published.keys() - {"quantization_config", "model_type", "rope_scaling"}:
        assert written[key] == published[key], key
    for key, value in (published.get("rope_scaling") or {}).items():
        assert written["rope_scaling"][key] == value, key


@pytest.mark.parametrize("name", NAMES)
def test_model_survives_the_round_trip(name):
    model = load_model(name)
    assert model_from_hf(json.loads(json.dumps(hf_config(model))), name) == model


@pytest.mark.parametrize("name", NAMES)
def test_transformers_reads_what_we_write(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = load_model(name)
    (tmp_path / "config.json").write_text(json.dumps(hf_config(model, bos_token_id=0)))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    softmax = model.moe_router_score_function == "softmax"
    kind = transformers.DeepseekV2Config if softmax else transformers.DeepseekV3Config
    assert type(config) is kind
    assert config.rope_parameters["rope_theta"] == model.rotary_base
    if model.rope_type == "yarn":
        for key in ("beta_fast", "beta_slow", "mscale", "mscale_all_dim"):
            assert config.rope_parameters[key] == getattr(model, key)
        assert config.rope_parameters["rope_type"] == "yarn"
        assert config.rope_parameters["factor"] == model.rotary_scaling_factor
        assert config.rope_parameters["original_max_position_embeddings"] == (
            model.original_max_position_embeddings
        )
    else:
        assert config.rope_parameters["rope_type"] == "default"
    if not softmax:
        assert config.num_mtp_layers == (model.mtp_num_layers or 0)
    # What transformers writes of it, we read as the same model; it drops keys it does not know.
    config.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert model_from_hf(again, name) == model


def test_transformers_own_parameters_of_rope_are_read():
    v3 = copy.deepcopy(PUBLISHED["deepseek-v3"])
    scaling = v3.pop("rope_scaling")
    kind = scaling.pop("type")
    v3["rope_parameters"] = {**scaling, "rope_type": kind, "rope_theta": v3.pop("rope_theta")}
    assert model_from_hf(v3, "m") == model_from_hf(PUBLISHED["deepseek-v3"], "m")


def test_balance_loss_that_a_config_does_not_name_is_the_reports(tmp_path, dsv3):
    v3 = dict(PUBLISHED["deepseek-v3"])
    del v3["aux_loss_alpha"]
    assert model_from_hf(v3, "m").moe_aux_loss_coeff == 1e-4
    (tmp_path / "config.json").write_text(json.dumps(v3))
    said = dsv3("model", "from-hf", tmp_path / "config.json")
    assert "moe_aux_loss_coeff: 0.0001" in said.out
    assert "Note: the config has no aux_loss_alpha" in said.err
    assert model_from_hf({**v3, "aux_loss_alpha": 0.0}, "m").moe_aux_loss_coeff == 0


@pytest.mark.parametrize("name", ["DeepseekV2Config", "DeepseekV3Config"])
def test_config_without_a_key_is_refused_or_what_transformers_takes_it_for(name):
    """No default of ours is another than that of the code which will run the model elsewhere."""
    kind = getattr(pytest.importorskip("transformers"), name)
    complete = json.loads(kind().to_json_string(use_diff=False))
    complete |= {"num_experts_per_tok": 4, "aux_loss_alpha": 1e-3, "n_group": 8, "topk_group": 4}
    if name == "DeepseekV2Config":
        complete["topk_method"] = "group_limited_greedy"
    whole = model_from_hf(complete, "m")
    # Told apart elsewhere: by the tensors, and by a sentence of its own.
    ours = {"num_nextn_predict_layers", "num_mtp_layers", "aux_loss_alpha", "topk_method"}
    refused = set()
    for key in complete.keys() - ours:
        less = {other: value for other, value in complete.items() if other != key}
        try:
            model = model_from_hf(less, "m")
        except UserError:
            refused.add(key)
        else:
            assert model == whole, key
    assert {"q_lora_rank", "routed_scaling_factor", "first_k_dense_replace", "n_group"} <= refused


@pytest.mark.parametrize(
    ("name", "change", "key"),
    [
        ("deepseek-v3", {"attention_bias": True}, "attention_bias"),
        ("deepseek-v3", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("deepseek-v2", {"norm_topk_prob": True}, "norm_topk_prob"),
        ("deepseek-v3", {"scoring_func": "softmax"}, "scoring_func"),
        ("deepseek-v2", {"scoring_func": "sigmoid"}, "scoring_func"),
        ("deepseek-v3", {"topk_method": "greedy"}, "topk_method"),
        ("deepseek-v2", {"topk_method": "noaux_tc"}, "topk_method"),
        ("deepseek-v2", {"n_group": None}, "n_group"),
        ("deepseek-v3", {"hidden_act": "gelu"}, "hidden_act"),
        ("deepseek-v3", {"rope_scaling": {"type": "linear", "factor": 2}}, "linear"),
        ("deepseek-v3", {"rope_interleave": False}, "rope_interleave"),
        ("deepseek-v3", {"moe_layer_freq": 2}, "moe_layer_freq"),
        ("deepseek-v3", {"num_key_value_heads": 8}, "num_key_value_heads"),
        ("deepseek-v3", {"model_type": "llama"}, "'llama' .* take a model of that family"),
        ("deepseek-v3", {"model_type": None}, "'model_type' is missing"),
        ("deepseek-v3", {"kv_lora_rank": None}, "kv_lora_rank"),
        ("deepseek-v3", {"hidden_size": "7168"}, "hidden_size"),
        ("deepseek-v3", {"n_shared_experts": "1"}, "n_shared_experts"),
        ("deepseek-v3", {"first_k_dense_replace": None}, "first_k_dense_replace"),
        ("deepseek-v3", {"rms_norm_eps": "small"}, "rms_norm_eps"),
        ("deepseek-v3", {"rope_scaling": "yarn"}, "rope_scaling"),
        ("deepseek-v3", {"rope_scaling": {"type": "yarn"}}, "factor"),
        ("deepseek-v3", {"rope_scaling": {"type": "yarn", "factor": 2, "mscale": 0.7}}, "mscale"),
    ],
)
def test_config_we_cannot_honour_is_refused_by_key(name, change, key):
    with pytest.raises(UserError, match=key) as caught:
        model_from_hf({**PUBLISHED[name], **change}, "some-model")
    assert str(caught.value).startswith("some-model: ")


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        (
            "tiny",
            {"moe_layer_freq": "[1]*1+[0]*1+[1]*2"},
            r"do not all come first; moe_layer_freq: \[0\]\*1\+\[1\]\*3 has",
        ),
        ("tiny", {"moe_shared_expert_intermediate_size": None}, "no shared expert"),
        (
            "tiny",
            {"moe_router_enable_expert_bias": False},
            "no bias; moe_router_enable_expert_bias: true gives",
        ),
        (
            "deepseek-v2",
            {"moe_router_pre_softmax": False},
            "renormalised over the chosen experts; moe_router_pre_softmax: true leaves",
        ),
        (
            "deepseek-v2",
            {"mtp_num_layers": 1},
            "mtp_num_layers: 1.*; mtp_num_layers: null leaves it out",
        ),
    ],
)
def test_model_without_hf_form_is_refused(name, change, reason):
    model = load_model(name)
    model = type(model)(**{**model.to_mapping(), **change})
    with pytest.raises(UserError, match=reason):
        hf_config(model)


def test_a_further_family_is_a_row(monkeypatch):
    # Keys of its own spelling, inside an object of their own.
    row = replace(FAMILIES["deepseek_v3"], renamed={"layers": "num_hidden_layers"}, inside="text")
    monkeypatch.setitem(FAMILIES, "deepseek_sees", row)
    published = PUBLISHED["deepseek-v3"]
    text = {("layers" if key == "num_hidden_layers" else key): published[key] for key in published}
    config = {"model_type": "deepseek_sees", "text": text | {"model_type": "text"}}
    model = model_from_hf(published, "m")
    assert model_from_hf(config, "m") == model
    written = brought_up_to_date(config, model)
    assert written == published | {"architectures": ["DeepseekV3ForCausalLM"]}


def test_files_that_are_no_config(tmp_path):
    with pytest.raises(UserError, match=r"config\.json: cannot be read"):
        read_hf_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: is not JSON"):
        read_hf_model(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json: holds no JSON object"):
        read_hf_model(tmp_path)
