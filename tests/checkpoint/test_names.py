"""The table of names against the published checkpoints, transformers' models and ours."""

import collections
import gc
import json
import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dsv3_plugin.checkpoint.conversion.config_json import FP8_CONFIG
from dsv3_plugin.checkpoint.conversion.weights import DistWeights, HFWeights
from dsv3_plugin.checkpoint.formats.dist_writer import DistLayout
from dsv3_plugin.checkpoint.formats.hf_writer import HFLayout
from dsv3_plugin.checkpoint.inspect import inspect
from dsv3_plugin.checkpoint.names import SCALE, TABLE, extra_states, hf_tensors, layout
from dsv3_plugin.recipe.hf_config import hf_config
from dsv3_plugin.recipe.load import load_model
from tests.checkpoint.samples import small_model

PUBLISHED = ["deepseek-v3", "deepseek-v2", "deepseek-v2-lite", "moonlight-16b-a3b", "kimi-k2"]


# What the published configs say, written down once more by hand.
RULES = {
    "deepseek-v3": {"layers": 61, "dense": 3, "experts": 256, "mtp": True},
    "deepseek-v2": {"layers": 60, "dense": 1, "experts": 160, "bias": False},
    "deepseek-v2-lite": {"layers": 27, "dense": 1, "experts": 64, "bias": False, "latent": False},
    "moonlight-16b-a3b": {"layers": 27, "dense": 1, "experts": 64, "latent": False},
    "kimi-k2": {"layers": 61, "dense": 1, "experts": 384},
}


def published_names(layers, dense, experts, *, latent=True, bias=True, mtp=False):
    """The names of a published index, scales too, from the rules of its code, not from the table.

    Args:
        layers, dense: of the main model, and the first of them that have no experts.
        experts: routed ones; the shared ones are one wider MLP.
        latent: queries come from a latent.
        bias: the router has one.
        mtp: whether a layer for multi-token prediction follows.
    """
    yield from ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    queries = ["self_attn.q_a_proj", "self_attn.q_b_proj"] if latent else ["self_attn.q_proj"]
    fp8 = [*queries, "self_attn.kv_a_proj_with_mqa", "self_attn.kv_b_proj", "self_attn.o_proj"]
    norms = ["input_layernorm", "post_attention_layernorm", "self_attn.kv_a_layernorm"]
    norms += ["self_attn.q_a_layernorm"] if latent else []
    for layer in range(layers + mtp):
        prefix = f"model.layers.{layer}."
        for norm in norms:
            yield f"{prefix}{norm}.weight"
        swiglus = ["mlp."]
        if layer >= dense:
            swiglus = [f"mlp.experts.{e}." for e in range(experts)] + ["mlp.shared_experts."]
            yield f"{prefix}mlp.gate.weight"
            if bias:
                yield f"{prefix}mlp.gate.e_score_correction_bias"
        linears = [s + p for s in swiglus for p in ("gate_proj", "up_proj", "down_proj")]
        for linear in fp8 + linears:
            yield from (f"{prefix}{linear}.weight", f"{prefix}{linear}.weight_scale_inv")
    for name in ("embed_tokens", "enorm", "hnorm", "eh_proj", "shared_head.norm",
                 "shared_head.head") if mtp else ():  # fmt: skip
        yield f"model.layers.{layers}.{name}.weight"


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_are_those_of_the_published_index(name):
    ours = [n for n, _, _ in hf_tensors(load_model(name))]
    ours += [n + SCALE for n, _, precision in hf_tensors(load_model(name)) if precision == "fp8"]
    theirs = list(published_names(**RULES[name]))
    assert len(ours) == len(theirs)
    assert set(ours) == set(theirs)


def test_deepseek_v3_is_the_published_checkpoint():
    tensors = list(hf_tensors(load_model("deepseek-v3")))
    quantised = [name for name, _, precision in tensors if precision == "fp8"]
    names = [name for name, _, _ in tensors] + [name + SCALE for name in quantised]
    assert len(tensors) == 46_183
    assert len(quantised) == 45_808
    assert sum(math.prod(shape) for _, shape, _ in tensors) == 684_489_845_504
    assert len(names) == len(set(names)) == 91_991


@pytest.fixture(autouse=True)
def no_collector():
    """100,000 records at once: collecting in between would double the time."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="module")
def sparse_v3(tmp_path_factory):
    """DeepSeek-V3's FP8 checkpoint at full size in files with headers and holes for data."""
    folder = tmp_path_factory.mktemp("v3") / "DeepSeek-V3"
    folder.mkdir()
    model = load_model("deepseek-v3")
    tensors = []
    for entry in layout(model):
        quantised = entry.precision == "fp8"
        dtype = torch.float8_e4m3fn if quantised else torch.bfloat16
        tensors.append((entry.name, dtype, entry.shape))
        if quantised:
            tensors.append((entry.name + SCALE, torch.float32, entry.scale().shape))
    placed = HFLayout(tensors, 5 * 10**9)
    for file, size in placed.files.items():
        with (folder / file).open("wb") as handle:
            handle.write(placed.headers[file])
            handle.truncate(size)
    placed.publish(folder)
    config = hf_config(model) | {"quantization_config": FP8_CONFIG}
    (folder / "config.json").write_text(json.dumps(config))
    yield folder
    for file in folder.iterdir():
        file.unlink()


def test_all_index_entries_of_v3_map_to_keys(sparse_v3):
    weights = HFWeights(sparse_v3)  # refuses names and shapes that the table does not have
    assert len(weights.stored) == 91_991
    found = inspect(sparse_v3)
    assert (found.complete, found.tensors, found.values) == (True, 91_991, 684_489_845_504)


def test_all_keys_of_v3_map_back(tmp_path):
    model = load_model("deepseek-v3")
    regions = []
    for entry in layout(model):
        if not entry.copy_of:
            regions.append((entry, torch.bfloat16))
            if entry.precision == "fp8":
                regions.append((entry.scale(), torch.float32))
    placed = DistLayout(regions)
    release = tmp_path / "release"
    release.mkdir()
    for file, size in placed.files.items():
        with (release / file).open("wb") as handle:
            handle.truncate(size)
    placed.finish(release, {}, extra_states(model))
    model.write(tmp_path / "model.yaml")
    weights = DistWeights(release)  # refuses keys that the table does not have
    assert len(weights.stored) == 91_991
    for file in release.iterdir():
        file.unlink()


@pytest.mark.parametrize("name", PUBLISHED)
def test_values_are_those_of_transformers_model(name):
    model = load_model(name)
    config = AutoConfig.for_model(**hf_config(model))
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(config)
    numel = sum(t.numel() for n, t in theirs.state_dict().items() if "inv_freq" not in n)
    main = [shape for n, shape, _ in hf_tensors(model)
            if not any(n.startswith(f"model.layers.{model.num_layers + d}.")
                       for d in range(model.mtp_num_layers or 0))]  # fmt: skip
    assert sum(math.prod(shape) for shape in main) == numel


@pytest.mark.parametrize(
    "model",
    [load_model(name) for name in [*PUBLISHED, "tiny"]]
    + [small_model(share_embeddings_and_output_weights=True, mtp_num_layers=2)],
    ids=lambda model: model.name,
)
def test_regions_tile_their_tensors(model):
    """Every value of every distributed tensor is some Hugging Face tensor's, exactly once."""
    covered, whole, corners = collections.Counter(), {}, set()
    for entry in layout(model):
        if entry.copy_of:
            continue
        for region in (entry, entry.scale()) if entry.precision == "fp8" else (entry,):
            covered[region.key] += math.prod(region.shape)
            assert whole.setdefault(region.key, region.global_shape) == region.global_shape
            assert (region.key, region.offset) not in corners
            corners.add((region.key, region.offset))
            ends = [a + b for a, b in zip(region.offset, region.sizes, strict=True)]
            assert all(a <= b for a, b in zip(ends, region.global_shape, strict=True))
    assert covered == {key: math.prod(shape) for key, shape in whole.items()}


def test_every_row_is_used_by_some_model():
    names = [entry.name for name in PUBLISHED[:3] for entry in layout(load_model(name))]
    unused = [row for row in TABLE
              if not any(n.endswith(row.hf.replace("{expert}", "0")) for n in names)]  # fmt: skip
    assert unused == []
