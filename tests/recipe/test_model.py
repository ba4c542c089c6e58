"""ModelConfig: what it reads, writes, normalises and refuses."""

import math

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe import yaml_text
from dsv3_plugin.recipe.load import load_model, shipped_folder
from dsv3_plugin.recipe.model import (
    ModelConfig,
    format_layer_pattern,
    parse_layer_pattern,
)
from dsv3_plugin.recipe.validation import validate

SHIPPED = sorted(path.stem for path in (shipped_folder() / "models").glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_write_then_read_is_the_same_model(name, tmp_path):
    model = load_model(name)
    model.write(tmp_path / "model.yaml")
    assert ModelConfig.read(tmp_path / "model.yaml") == model
    assert model.name == name


def test_tiny_has_every_feature_of_v3():
    tiny = load_model("tiny")
    assert tiny.q_lora_rank
    assert tiny.moe_layer_freq == [0, 1, 1, 1]
    assert tiny.moe_layers == [1, 2, 3]
    assert tiny.moe_shared_expert_intermediate_size
    assert tiny.moe_router_num_groups > tiny.moe_router_group_topk
    assert tiny.moe_router_enable_expert_bias
    assert tiny.moe_aux_loss_coeff > 0
    assert tiny.mtp_num_layers == 1
    assert tiny.vocab_size % 128 == 0


@pytest.mark.parametrize(
    ("pattern", "layers"),
    [
        (1, [1, 1, 1, 1]),
        (2, [1, 0, 1, 0]),
        ("[0]*1+[1]*3", [0, 1, 1, 1]),
        ("([0]*1 + [1]*3)", [0, 1, 1, 1]),
        ("[0,1]*2", [0, 1, 0, 1]),
        ("[1,0,0,1]", [1, 0, 0, 1]),
    ],
)
def test_layer_patterns_mean_what_upstream_means(pattern, layers):
    assert parse_layer_pattern(pattern, 4) == layers


@given(st.lists(st.sampled_from([0, 1]), min_size=1, max_size=40))
def test_layer_pattern_round_trip(layers):
    assert parse_layer_pattern(format_layer_pattern(layers), len(layers)) == layers


def test_spellings_of_none_are_one():
    tiny = load_model("tiny").to_mapping()
    plain = ModelConfig(**{**tiny, "mtp_num_layers": None})
    assert ModelConfig(**{**tiny, "mtp_num_layers": 0}) == plain
    ungrouped = {**tiny, "moe_router_num_groups": None, "moe_router_group_topk": None}
    assert ModelConfig(**{**tiny, "moe_router_num_groups": 1, "moe_router_group_topk": 1}) == (
        ModelConfig(**ungrouped)
    )
    assert ModelConfig(**{**tiny, "moe_router_topk_scaling_factor": 1.0}) == (
        ModelConfig(**{**tiny, "moe_router_topk_scaling_factor": None})
    )


def test_plain_rope_sets_the_yarn_fields_neutral():
    model = ModelConfig(**{**load_model("deepseek-v3").to_mapping(), "rope_type": "rope"})
    assert model.rotary_scaling_factor == 1.0
    assert model.original_max_position_embeddings == model.max_position_embeddings


def test_yarn_by_factor_1_is_plain_rope():
    # As upstream's fused kernel is asked for it: what a checkpoint's arguments then say.
    v3 = load_model("deepseek-v3").to_mapping()
    stretched_by_one = {"rope_type": "yarn", "rotary_scaling_factor": 1.0}
    assert ModelConfig(**v3 | stretched_by_one) == ModelConfig(**v3 | {"rope_type": "rope"})
    assert ModelConfig(**v3 | {"rotary_scaling_factor": 1.001}).rope_type == "yarn"


def test_dense_model_needs_no_expert_fields():
    model = ModelConfig(
        name="dense", num_layers=2, hidden_size=32, vocab_size=64, max_position_embeddings=64,
        ffn_hidden_size=64, num_attention_heads=2, kv_lora_rank=16, qk_head_dim=8,
        qk_pos_emb_head_dim=4, v_head_dim=8,
    )  # fmt: skip
    assert model.moe_layers == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"num_moe_experts": 18},
            "18 routed experts (num_moe_experts) do not divide into 4 groups "
            "(moe_router_num_groups): take a number that divides them, such as 3.",
        ),
        (
            {"moe_router_topk": 9},
            "is more than the 8 experts of 2 allowed groups: take 8 or fewer, or "
            "`moe_router_group_topk: 3`.",
        ),
        ({"moe_router_topk": 99}, "16 routed experts (num_moe_experts): take 8 or fewer."),
        (
            {"moe_router_group_topk": 5},
            "more than the 4 groups (moe_router_num_groups): take 4 or fewer.",
        ),
        (
            {"moe_router_group_topk": None},
            "together or not at all: give both, or set both to null.",
        ),
        ({"moe_layer_freq": "[0]*1+[1]*4"}, "describes 5 layers, num_layers says 4"),
        ({"moe_layer_freq": "0,1"}, "is not a layer pattern"),
        ({"num_layers": "4"}, "'num_layers' is '4'; it must be a valid integer"),
        ({"hidden_size": 0}, "'hidden_size' is 0; it must be greater than 0"),
        ({"hidden_sise": 8}, "unknown key 'hidden_sise' (nearest: 'hidden_size')"),
        (
            {"moe_shared_expert_intermediate_size": 65},
            "not a whole number of experts of width 48 "
            "(moe_ffn_hidden_size): take 48 or 96, or null for no shared expert.",
        ),
        ({"qk_pos_emb_head_dim": 15}, "must be even: take 14 or 16."),
        ({"moe_router_score_function": "softmax"}, "sigmoid; with softmax set it to false."),
        ({"moe_router_pre_softmax": True}, "score_function: softmax, or set it to false."),
        ({"num_moe_experts": 60_000}, "may have: take 16384 or fewer."),
        ({"moe_layer_freq": "[0]*4"}, 'experts to null, or write `moe_layer_freq: "[1]*4"`, or'),
        (
            {"moe_router_num_groups": 16, "moe_router_topk": 2},
            "have one each: take 8 groups or fewer, or",
        ),
        (
            {"moe_ffn_hidden_size": None},
            "needs moe_ffn_hidden_size: give it, or have dense layers "
            'alone with `moe_layer_freq: "[0]*4"` and `num_moe_experts: null`.',
        ),
        ({"moe_router_load_balancing_type": "none"}, "needs moe_router_load_balancing_type"),
        ({"layernorm_epsilon": math.inf}, "'layernorm_epsilon' is .inf; it must be a finite"),
        ({"rope_type": "yarn", "mscale": math.nan}, "'mscale' is .nan; it must be a finite number"),
    ],
)
def test_refused_in_one_sentence(change, sentence, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({**load_model("tiny").to_mapping(), **change}))
    with pytest.raises(UserError) as caught:
        ModelConfig.read(path)
    assert sentence in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_name_says_the_nearest():
    with pytest.raises(UserError, match=r"'deepseek-v4'.*nearest: 'deepseek-v[23]'"):
        load_model("deepseek-v4")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("2.2e-4", 2.2e-4), ("1.", 1.0), (".5", 0.5), ("no", "no"), ("on", "on"),
        ("true", True), ("12:30", "12:30"), ("010", "010"), ("1_000", 1000), ("-3", -3),
        ("10T", "10T"), ("null", None), ("[1, 2e3]", [1, 2000.0]),
    ],
)  # fmt: skip
def test_yaml_scalars(text, value):
    read = yaml_text.parse(text, "here")
    assert read == value
    assert type(read) is type(value)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.text("abcdefg_", min_size=1),
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    )
)
def test_yaml_dump_reads_back(data):
    assert yaml_text.parse(yaml_text.dump(data), "here") == data


def test_a_key_given_twice_is_an_error(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("a: 1\nb: 2\na: 3\n")
    with pytest.raises(UserError, match=r"twice.yaml, line 3: the key 'a' is given twice"):
        yaml_text.read_mapping(path)


@pytest.mark.parametrize("text", ["1e5", "no", "true", "10T", "null", "0.1", "-"])
def test_strings_that_look_like_something_else_are_quoted(text):
    assert yaml_text.parse(yaml_text.dump({"a": text}), "here") == {"a": text}


@pytest.mark.parametrize("value", [math.nan, math.inf, "abc"])
@pytest.mark.parametrize("field", ["mscale", "beta_fast", "rotary_scaling_factor"])
def test_what_is_no_number_is_refused_beside_plain_rope_too(field, value):
    tiny = load_model("tiny").to_mapping()
    assert tiny["rope_type"] == "rope"
    with pytest.raises(UserError, match=field):
        validate(ModelConfig, tiny | {field: value}, "tiny")
