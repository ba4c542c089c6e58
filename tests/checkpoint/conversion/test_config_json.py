"""config.json comes back as it was, but for what the model and the chosen types say."""

import json
from pathlib import Path

import pytest
import torch

from dsv3_plugin.checkpoint import export_hf, import_hf
from dsv3_plugin.checkpoint.conversion.config_json import FP8_CONFIG
from dsv3_plugin.checkpoint.formats.model_file import MODEL_FILE
from dsv3_plugin.recipe.hf_config import brought_up_to_date, model_from_hf
from tests.checkpoint.samples import (
    E4M3,
    random_tensors,
    read_tensors,
    small_model,
    write_folder,
)

PUBLISHED = Path(__file__).parents[2] / "recipe" / "published"
MODEL = small_model()
UE8M0 = FP8_CONFIG | {"scale_fmt": "ue8m0"}
O_PROJ = "model.layers.0.self_attn.o_proj.weight"

SAID = {
    "bos_token_id": 3, "eos_token_id": [4, 5], "pad_token_id": None, "use_cache": False,
    "transformers_version": "4.46.3", "ep_size": 8, "a key of tomorrow": {"x": [1.5]},
}  # fmt: skip
CODE = {"auto_map": {"AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"}}


@pytest.fixture(params=["bf16", "fp8"])
def form(request):
    return request.param


@pytest.fixture
def source(tmp_path, form):
    folder = write_folder(tmp_path / "source", MODEL, random_tensors(MODEL, form))
    said = SAID | ({"quantization_config": UE8M0} if form == "fp8" else {})
    say(folder, said | CODE)
    return folder


def say(folder, said):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | said))


def config(folder):
    return json.loads((folder / "config.json").read_text())


def without(mapping, *keys):
    return {key: value for key, value in mapping.items() if key not in keys}


def test_config_is_the_sources(source, tmp_path, form):
    import_hf(source, tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "same", fp8=form == "fp8")
    assert config(tmp_path / "same") == without(config(source), "auto_map")
    assert not (tmp_path / "same" / "generation_config.json").exists()
    # Only what the chosen types say is another.
    export_hf(tmp_path / "checkpoint", tmp_path / "wide", dtype="fp32")
    expected = without(config(source), "auto_map", "quantization_config")
    assert config(tmp_path / "wide") == expected | {"torch_dtype": "float32"}
    export_hf(tmp_path / "checkpoint", tmp_path / "fp8", fp8=True)
    quantised = {"quantization_config": UE8M0 if form == "fp8" else FP8_CONFIG}
    assert config(tmp_path / "fp8") == without(config(source), "auto_map") | quantised


@pytest.mark.parametrize("form", ["bf16"], indirect=True)
def test_generation_config_changes_no_token_ids(source, tmp_path):
    text = json.dumps({"bos_token_id": None, "eos_token_id": 7})
    (source / "generation_config.json").write_text(text)
    import_hf(source, tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "out")
    assert config(tmp_path / "out") == without(config(source), "auto_map")
    assert (tmp_path / "out" / "generation_config.json").read_text() == text


@pytest.mark.parametrize("form", ["bf16"], indirect=True)
def test_what_the_model_says_now_is_said(source, tmp_path):
    import_hf(source, tmp_path / "checkpoint")
    model = MODEL.model_copy(update={"rotary_base": 5e5, "max_position_embeddings": 77})
    model.write(tmp_path / "checkpoint" / MODEL_FILE)
    export_hf(tmp_path / "checkpoint", tmp_path / "out")
    changed = {"rope_theta": 5e5, "max_position_embeddings": 77}
    assert config(tmp_path / "out") == without(config(source), "auto_map") | changed


def test_keys_of_transformers_5_do_not_outlive_a_change():
    published = json.loads((PUBLISHED / "deepseek-v3.json").read_text())
    scaling = published.pop("rope_scaling") | {"rope_theta": published.pop("rope_theta")}
    published["num_mtp_layers"] = published.pop("num_nextn_predict_layers")
    theirs = published | {"rope_parameters": scaling, "dtype": "bfloat16"}
    model = model_from_hf(theirs, "v3")
    assert brought_up_to_date(theirs, model) == without(theirs, "auto_map")
    for change in ({"rotary_base": 5e5}, {"beta_fast": 16.0}, {"mtp_num_layers": None}):
        other = model.model_copy(update=change)
        assert model_from_hf(brought_up_to_date(theirs, other), "v3") == other


@pytest.mark.parametrize("path", sorted(PUBLISHED.glob("*.json")), ids=lambda path: path.stem)
def test_published_configs_need_no_code(path):
    published = json.loads(path.read_text())
    config = brought_up_to_date(published, model_from_hf(published, path.stem))
    assert config["model_type"] in ("deepseek_v2", "deepseek_v3")
    assert "auto_map" not in config
    same = ("auto_map", "model_type", "architectures")
    assert without(config, *same) == without(published, *same)


@pytest.mark.parametrize("form", ["fp8"], indirect=True)
def test_weights_that_were_not_fp8_stay_so(source, tmp_path):
    tensors = random_tensors(MODEL, "fp8")
    del tensors[O_PROJ + "_scale_inv"]
    tensors[O_PROJ] = tensors[O_PROJ].to(torch.bfloat16)
    said = {"quantization_config": UE8M0 | {"modules_to_not_convert": ["o_proj"]}}
    say(write_folder(source, MODEL, tensors), said)
    import_hf(source, tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "out", fp8=True)
    assert read_tensors(tmp_path / "out")[O_PROJ].dtype == torch.bfloat16
    assert config(tmp_path / "out") == config(source)


@pytest.mark.parametrize("form", ["bf16"], indirect=True)
def test_new_scales_are_powers_of_two_where_the_config_says_so(source, tmp_path):
    """Weights trained further, beside the config.json of the model they come from."""
    import_hf(source, tmp_path / "checkpoint")
    said = json.loads((tmp_path / "checkpoint" / "hf_config.json").read_text())
    said["quantization_config"] = UE8M0
    (tmp_path / "checkpoint" / "hf_config.json").write_text(json.dumps(said))
    export_hf(tmp_path / "checkpoint", tmp_path / "out", fp8=True)
    out = read_tensors(tmp_path / "out")
    scales = [tensor for name, tensor in out.items() if name.endswith("_scale_inv")]
    assert sum(tensor.dtype == E4M3 for tensor in out.values()) == len(scales) > 10
    for scale in scales:
        assert bool((torch.frexp(scale).mantissa == 0.5).all())
    assert config(tmp_path / "out")["quantization_config"] == UE8M0
