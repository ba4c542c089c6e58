"""transformers' model → folder → checkpoint → our model, and back, with the same logits."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from dsv3_plugin.checkpoint import export_hf, import_hf, iter_hf_tensors
from dsv3_plugin.checkpoint.conversion.verify import verify
from dsv3_plugin.checkpoint.load import load_for_inference
from dsv3_plugin.distributed.world import single_process
from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.logits import main_logits
from tests import oracles
from tests.checkpoint.samples import (
    assert_same_bytes,
    random_tensors,
    read_tensors,
    small_model,
    write_folder,
)
from tests.gloo_ranks import run_ranks

SOFTMAX = {
    "moe_router_score_function": "softmax",
    "moe_router_pre_softmax": True,
    "moe_router_enable_expert_bias": False,
}
NO_GROUPS = {"moe_router_num_groups": None, "moe_router_group_topk": None}
MODELS = {
    "V3": oracles.model_config(),
    "V2": oracles.model_config(**SOFTMAX),
    "V2-Lite": oracles.model_config(**SOFTMAX, **NO_GROUPS, q_lora_rank=None),
    "Moonlight": oracles.model_config(**NO_GROUPS, q_lora_rank=None, layernorm_epsilon=1e-5),
    "Kimi K2": oracles.model_config(**NO_GROUPS),
}


@pytest.fixture
def world():
    with single_process(seed=1):
        yield


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_are_transformers_both_ways(world, tmp_path, name):
    theirs = oracles.causal_lm(MODELS[name])
    theirs.save_pretrained(tmp_path / "source")  # as transformers writes it
    import_hf(tmp_path / "source", tmp_path / "checkpoint")
    ours, model = load_for_inference(tmp_path / "checkpoint")
    tokens = torch.randint(96, (2, 20), generator=torch.Generator().manual_seed(3))
    expected = oracles.logits(theirs, tokens)
    # FP32 sums in another order: 1e-5 on logits of standard deviation 1.
    torch.testing.assert_close(main_logits(ours, tokens), expected, rtol=0, atol=1e-5)

    export_hf(tmp_path / "checkpoint", tmp_path / "out")
    assert_same_bytes(read_tensors(tmp_path / "out"), read_tensors(tmp_path / "source"))
    again, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(oracles.logits(again.eval(), tokens), expected)
    assert model.name == "source"


def test_transformers_loads_an_export_with_an_mtp_layer(tmp_path):
    model = small_model(hidden_size=144)
    tensors = random_tensors(model, "bf16")
    write_folder(tmp_path / "source", model, tensors)
    import_hf(tmp_path / "source", tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "out")
    theirs, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.bfloat16, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert torch.equal(theirs.lm_head.weight, tensors["lm_head.weight"])


@torch.no_grad()
def test_a_folder_that_transformers_saved_without_its_mtp_layer(world, tmp_path):
    source, checkpoint, out = (tmp_path / name for name in ("source", "checkpoint", "out"))
    theirs = oracles.causal_lm(oracles.model_config(mtp_num_layers=1))
    theirs.save_pretrained(source)
    assert json.loads((source / "config.json").read_text())["num_nextn_predict_layers"] == 1
    with pytest.raises(UserError, match="if these weights have none, give --without-mtp"):
        import_hf(source, checkpoint)

    import_hf(source, checkpoint, without_mtp=True)
    ours, model = load_for_inference(checkpoint)
    assert not model.mtp_num_layers
    tokens = torch.randint(96, (2, 20), generator=torch.Generator().manual_seed(3))
    # FP32 sums in another order: 1e-5 on logits of standard deviation 1.
    torch.testing.assert_close(
        main_logits(ours, tokens), oracles.logits(theirs, tokens), rtol=0, atol=1e-5
    )
    assert not verify(source, checkpoint, without_mtp=True).differences

    export_hf(checkpoint, out)
    assert json.loads((out / "config.json").read_text())["num_nextn_predict_layers"] == 0
    assert_same_bytes(read_tensors(out), read_tensors(source))


def test_an_mtp_layer_that_is_there_is_not_left_out(tmp_path):
    model = small_model()
    write_folder(tmp_path / "source", model, random_tensors(model, "bf16"))
    with pytest.raises(UserError, match="this folder has it, so leave --without-mtp out"):
        import_hf(tmp_path / "source", tmp_path / "checkpoint", without_mtp=True)


@torch.no_grad()
def test_weights_come_out_of_memory_as_they_went_in(world, tmp_path):
    for form, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        model = small_model()
        tensors = random_tensors(model, form)
        write_folder(tmp_path / form, model, tensors)
        import_hf(tmp_path / form, tmp_path / f"checkpoint-{form}")
        ours, _ = load_for_inference(tmp_path / f"checkpoint-{form}", dtype)
        # Norms and routers keep FP32 in a BF16 model; the cast gives them back exactly.
        assert_same_bytes(dict(iter_hf_tensors(ours, dtype=dtype)), tensors)
        cast = dict(iter_hf_tensors([ours], model, dtype=torch.float16))
        bias = "model.layers.1.mlp.gate.e_score_correction_bias"
        assert cast[bias].dtype == torch.float32
        assert cast["lm_head.weight"].dtype == torch.float16


def handed_over(rank, checkpoint, layout):
    """What a rank gets of a model that several ranks hold; True if it is what was imported."""
    import torch.distributed as dist
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    from dsv3_plugin.checkpoint.conversion.weights import open_weights
    from dsv3_plugin.model.build import build_model

    parallel_state.initialize_model_parallel(**layout)
    model_parallel_cuda_manual_seed(1)
    weights = open_weights(checkpoint)
    stages = layout.get("pipeline_model_parallel_size", 1)
    first, last = rank == 0 or stages == 1, rank == stages - 1 or stages == 1
    overrides = {}
    if stages > 1:
        overrides = {"pipeline_model_parallel_size": 2, "pipeline_dtype": torch.float32}
        overrides["pipeline_model_parallel_layout"] = "Ett|tmL"
    ours = build_model(weights.model, pre_process=first, post_process=last, **overrides)
    sharded = ours.sharded_state_dict(metadata={})
    dist_checkpointing.load(sharded, str(checkpoint / "release"))  # in place
    # Without the group a rank is told so before it is given anything.
    with pytest.raises(UserError, match=r"(only part|nothing) of .* give .* as group="):
        next(iter_hf_tensors(ours, weights.model))
    names = []
    for name, tensor in iter_hf_tensors(ours, weights.model, group=dist.group.WORLD):
        stored = weights.rows(name, 0, tensor.shape[0])
        assert torch.equal(tensor, stored), name
        names.append(name)
    return names == [entry.name for entry in weights.entries]


@pytest.mark.parametrize(
    "layout", [{"expert_model_parallel_size": 2}, {"pipeline_model_parallel_size": 2}],
    ids=["experts", "pipeline"],
)  # fmt: skip
def test_weights_are_gathered_from_ranks(tmp_path, layout):
    model = small_model()
    write_folder(tmp_path / "source", model, random_tensors(model, "fp32"))
    import_hf(tmp_path / "source", tmp_path / "checkpoint")
    (tmp_path / "ranks").mkdir()
    answers = run_ranks(2, handed_over, tmp_path / "checkpoint", layout, scratch=tmp_path / "ranks")
    assert answers == [True, True]


def test_fp8_weights_are_not_loaded_without_their_scales(world, tmp_path):
    model = small_model()
    write_folder(tmp_path / "source", model, random_tensors(model, "fp8"))
    import_hf(tmp_path / "source", tmp_path / "checkpoint", dtype="keep-fp8")
    with pytest.raises(UserError, match="keeps its weights in FP8"):
        load_for_inference(tmp_path / "checkpoint")
