"""export(import(x)) is x, byte for byte, for random models, forms and shard sizes."""

import json
import tempfile
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dsv3_plugin.checkpoint import export_hf, import_hf
from dsv3_plugin.checkpoint.conversion.verify import verify
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.folders import whole_folder
from dsv3_plugin.fp8 import deepgemm
from dsv3_plugin.fp8.quantize import quantize_blocks
from dsv3_plugin.recipe.hf_config import model_from_hf
from tests.checkpoint.samples import (
    E4M3,
    assert_same_bytes,
    overwrite,
    random_tensors,
    read_tensors,
    small_model,
    write_folder,
)

SOFTMAX = {
    "moe_router_score_function": "softmax",
    "moe_router_pre_softmax": True,
    "moe_router_enable_expert_bias": False,
    "mtp_num_layers": None,
}

models = st.builds(
    lambda latent, hidden, ffn, expert_ffn, shared, experts, dense, mtp, tied, softmax: small_model(
        q_lora_rank=latent,
        hidden_size=4 * hidden,
        ffn_hidden_size=ffn,
        moe_ffn_hidden_size=expert_ffn,
        moe_shared_expert_intermediate_size=shared * expert_ffn,
        num_moe_experts=experts,
        moe_router_topk=1,
        moe_router_num_groups=None,
        moe_router_group_topk=None,
        moe_layer_freq=[0] * dense + [1] * (3 - dense),
        share_embeddings_and_output_weights=tied,
        **{"mtp_num_layers": mtp, **(SOFTMAX if softmax else {})},
    ),
    latent=st.sampled_from([None, 24, 130]),
    hidden=st.integers(1, 80),
    ffn=st.integers(1, 300),
    expert_ffn=st.integers(1, 300),
    shared=st.integers(1, 2),
    experts=st.integers(1, 3),
    dense=st.integers(0, 2),
    mtp=st.sampled_from([None, 1, 2]),
    tied=st.booleans(),
    softmax=st.booleans(),
)


@given(
    model=models,
    form=st.sampled_from(["bf16", "fp32", "fp8"]),
    kept=st.sampled_from([None, "keep-fp8"]),
    shards=st.integers(1, 4),
    shard_size=st.integers(1, 10**6),
    workers=st.integers(1, 3),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=50,
          suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
def test_export_of_import_is_the_same_bytes(model, form, kept, shards, shard_size, workers, seed):
    with tempfile.TemporaryDirectory() as scratch:
        source, checkpoint, target = (Path(scratch, name) for name in "abc")
        tensors = random_tensors(model, form, seed)
        write_folder(source, model, tensors, shards)
        import_hf(source, checkpoint, dtype=kept, workers=workers)
        export_hf(checkpoint, target, fp8=form == "fp8", shard_size=shard_size, workers=workers)
        assert_same_bytes(read_tensors(target), tensors)
        # The folder names its tensors in an index whenever there are several files.
        files = list(target.glob("*.safetensors"))
        assert (target / "model.safetensors.index.json").exists() == (len(files) > 1)
        again = model_from_hf(json.loads((target / "config.json").read_text()), model.name)
        assert again == model_from_hf(json.loads((source / "config.json").read_text()), model.name)


@pytest.fixture(scope="module")
def fp8_source(tmp_path_factory):
    model = small_model()
    tensors = random_tensors(model, "fp8")
    folder = write_folder(tmp_path_factory.mktemp("fp8") / "source", model, tensors)
    return folder, model, tensors


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_weights_taken_out_of_fp8_go_back_to_the_same_bytes(fp8_source, tmp_path, dtype):
    folder, _, tensors = fp8_source
    import_hf(folder, tmp_path / "checkpoint", dtype=dtype)
    assert not verify(folder, tmp_path / "checkpoint").differences
    export_hf(tmp_path / "checkpoint", tmp_path / "out", fp8=True, dtype="bf16")
    assert_same_bytes(read_tensors(tmp_path / "out"), tensors)


O_PROJ = "model.layers.0.self_attn.o_proj.weight"


@given(
    scale=st.sampled_from([0.0, 1e-42, 1e-38, 2.0**-118, 2.0**-117, 1e-3, 1.0, 2.0**119, 3e37])
    | st.floats(0, width=32, allow_infinity=False),
    zeros=st.booleans(),
    dtype=st.sampled_from(["bf16", "fp32"]),
)
@settings(max_examples=8)
@example(scale=0.0, zeros=True, dtype="bf16")
@example(scale=1e-42, zeros=False, dtype="bf16")
@example(scale=3e37, zeros=False, dtype="fp32")
@example(scale=1e-3, zeros=False, dtype="bf16")
def test_all_codes_come_back_or_the_import_says_they_would_not(fp8_source, scale, zeros, dtype):
    """All codes of a number under any scale: the same bytes, or a sentence; never other bytes."""
    _, model, tensors = fp8_source
    tensors = dict(tensors)
    numbers = torch.tensor([code for code in range(256) if code & 0x7F != 0x7F])
    codes = numbers.repeat(tensors[O_PROJ].numel() // 254 + 1)[: tensors[O_PROJ].numel()]
    codes = (codes % 2 * 128 if zeros else codes).to(torch.uint8)
    tensors[O_PROJ] = codes.view(tensors[O_PROJ].shape).view(E4M3)
    tensors[O_PROJ + "_scale_inv"] = torch.full_like(tensors[O_PROJ + "_scale_inv"], scale)
    with tempfile.TemporaryDirectory() as scratch:
        source, checkpoint, target = (Path(scratch, name) for name in "abc")
        write_folder(source, model, tensors)
        sentence = ""
        try:
            import_hf(source, checkpoint, dtype=dtype)
        except UserError as error:
            sentence = str(error)
        if sentence:
            assert not zeros
            assert not 2.0**-117 <= scale <= 2.0**119
            assert sentence.startswith(f"{O_PROJ} in {source}")
            assert "safetensors has FP8 scales so small or large" in sentence
            assert "--dtype keep-fp8" in sentence
            checkpoint = Path(scratch, "kept")
            import_hf(source, checkpoint, dtype="keep-fp8")
        else:
            assert zeros or scale >= 1e-40 or dtype == "fp32"
            assert not verify(source, checkpoint).differences
        export_hf(checkpoint, target, fp8=True, dtype="bf16")
        assert_same_bytes(read_tensors(target), tensors)


def test_dequantised_values_are_weight_times_scale(fp8_source, tmp_path):
    folder, _, tensors = fp8_source
    import_hf(folder, tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "out")
    out = read_tensors(tmp_path / "out")
    for name, weight in tensors.items():
        if weight.dtype == E4M3:
            scale = tensors[name + "_scale_inv"]
            for i in range(0, weight.shape[0], 128):  # the definition, one block at a time
                for j in range(0, weight.shape[1], 128):
                    block = weight[i : i + 128, j : j + 128].float() * scale[i // 128, j // 128]
                    mine = out[name][i : i + 128, j : j + 128]
                    assert torch.equal(mine, block.bfloat16()), name


@pytest.mark.parametrize(
    ("rule", "quantise"), [("reversible", quantize_blocks), ("deepgemm", deepgemm.quantize_blocks)]
)
def test_weights_without_scales_are_quantised(tmp_path, rule, quantise):
    model = small_model()
    tensors = random_tensors(model, "fp32")
    write_folder(tmp_path / "source", model, tensors)
    import_hf(tmp_path / "source", tmp_path / "checkpoint", dtype="bf16")
    export_hf(tmp_path / "checkpoint", tmp_path / "out", fp8=True, fp8_rule=rule)
    out = read_tensors(tmp_path / "out")
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    values, scale = quantise(tensors[name].bfloat16())
    assert torch.equal(out[name].view(torch.uint8), values.view(torch.uint8))
    assert torch.equal(out[name + "_scale_inv"], scale)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["weight_block_size"] == [128, 128]


def test_a_rule_for_scales_that_are_kept_is_said_to_change_nothing(fp8_source, tmp_path):
    folder, _, tensors = fp8_source
    import_hf(folder, tmp_path / "checkpoint")
    done = export_hf(tmp_path / "checkpoint", tmp_path / "out", fp8=True, fp8_rule="deepgemm")
    assert any("--fp8-rule deepgemm changed nothing" in note for note in done.notes)
    assert_same_bytes(read_tensors(tmp_path / "out"), tensors)


def test_a_changed_weight_is_not_forced_into_its_old_scales(fp8_source, tmp_path):
    folder, _, _ = fp8_source
    import_hf(folder, tmp_path / "checkpoint")
    overwrite(tmp_path / "checkpoint", "decoder.layers.0.self_attention.linear_proj.weight", b"abc")
    with pytest.raises(UserError, match=r"o_proj.weight in .* does not fit the FP8 scales"):
        export_hf(tmp_path / "checkpoint", tmp_path / "out", fp8=True)
    assert (tmp_path / "out" / "INCOMPLETE").exists()


def test_casts_are_said_and_the_router_bias_keeps_its_type(tmp_path):
    model = small_model()
    tensors = random_tensors(model, "fp32")
    write_folder(tmp_path / "source", model, tensors)
    import_hf(tmp_path / "source", tmp_path / "checkpoint", dtype="bf16")
    export_hf(tmp_path / "checkpoint", tmp_path / "out", dtype="fp32")
    for name, tensor in read_tensors(tmp_path / "out").items():
        exact = name.endswith("e_score_correction_bias")
        assert torch.equal(tensor, tensors[name] if exact else tensors[name].bfloat16().float())


def test_large_tensors_are_cut_into_chunks(tmp_path, monkeypatch):
    from dsv3_plugin.checkpoint.conversion import recode, stream
    from dsv3_plugin.checkpoint.formats import dist_writer

    monkeypatch.setattr(dist_writer, "_CHUNK_BYTES", 5000)
    monkeypatch.setattr(dist_writer, "_FILE_BYTES", 100_000)
    for module in (stream, recode):
        monkeypatch.setattr(module, "BLOCK_BYTES", 3000)
    model = small_model()
    for form in ("bf16", "fp8"):
        tensors = random_tensors(model, form)
        source = write_folder(tmp_path / f"source-{form}", model, tensors)
        import_hf(source, tmp_path / f"checkpoint-{form}")
        assert len(list((tmp_path / f"checkpoint-{form}" / "release").glob("*.distcp"))) > 5
        export_hf(tmp_path / f"checkpoint-{form}", tmp_path / f"out-{form}", fp8=form == "fp8")
        assert_same_bytes(read_tensors(tmp_path / f"out-{form}"), tensors)


def test_manifest_has_every_tensor_and_its_checksum(fp8_source, tmp_path):
    import zlib

    folder, _, tensors = fp8_source
    import_hf(folder, tmp_path / "checkpoint", dtype="keep-fp8")
    export_hf(tmp_path / "checkpoint", tmp_path / "out", fp8=True)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    listed = {entry["name"]: entry for entry in manifest["tensors"]}
    assert listed.keys() == tensors.keys()
    for name, tensor in tensors.items():
        raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        assert listed[name]["crc32"] == f"{zlib.crc32(raw):08x}"
        assert listed[name]["shape"] == list(tensor.shape)
    assert json.loads((tmp_path / "checkpoint" / "manifest.json").read_text())["tensors"]


def test_tokenizer_and_token_ids_travel(tmp_path):
    model = small_model()
    write_folder(tmp_path / "source", model, random_tensors(model, "bf16"))
    config = json.loads((tmp_path / "source" / "config.json").read_text())
    config |= {"bos_token_id": 0, "eos_token_id": 1}
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    (tmp_path / "source" / "tokenizer.json").write_text("{}")
    (tmp_path / "source" / "modeling_deepseek.py").write_text("raise SystemExit")
    import_hf(tmp_path / "source", tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (0, 1)
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    assert not list((tmp_path / "out").glob("*.py"))


def test_an_export_never_mixes_two_tokenizers(tmp_path):
    """One that was put in the place of the import's brings its own ids, and nothing of the old."""
    model = small_model()
    source, checkpoint = tmp_path / "source", tmp_path / "checkpoint"
    write_folder(source, model, random_tensors(model, "bf16"))
    config = json.loads((source / "config.json").read_text())
    own = {"bos_token_id": 5, "eos_token_id": [7, 8], "pad_token_id": 6}
    (source / "config.json").write_text(json.dumps(config | own))
    added = [{"id": 7, "content": "</s>"}]
    (source / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    (source / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    (source / "chat_template.jinja").write_text("the old one's")
    import_hf(source, checkpoint)

    def ids(out):
        export_hf(checkpoint, out)
        config = json.loads((out / "config.json").read_text())
        return {name: config[name] for name in own}

    assert ids(tmp_path / "as it came") == own
    (checkpoint / "tokenizer" / "chat_template.jinja").write_text("another of the same tokenizer's")
    assert ids(tmp_path / "other template") == own
    with whole_folder(checkpoint / "tokenizer") as other:
        added = [{"id": 3, "content": "<end>"}]
        (other / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
        (other / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    out = tmp_path / "other tokenizer"
    assert ids(out) == {"bos_token_id": None, "eos_token_id": 3, "pad_token_id": None}
    assert not (out / "chat_template.jinja").exists()


@pytest.mark.parametrize("direction", ["import", "export"])
def test_a_tokenizer_that_changed_since_the_conversion_began(tmp_path, direction):
    model = small_model()
    source, checkpoint = tmp_path / "source", tmp_path / "checkpoint"
    write_folder(source, model, random_tensors(model, "bf16"))
    (source / "tokenizer.json").write_text("{}")
    import_hf(source, checkpoint)
    export_hf(checkpoint, tmp_path / "out")
    if direction == "import":
        changed, repeat = source, partial(import_hf, source, checkpoint, resume=True)
    else:
        changed = checkpoint / "tokenizer"
        repeat = partial(export_hf, checkpoint, tmp_path / "out", resume=True)
    assert repeat().was_complete
    for name in ("tokenizer.json", "chat_template.jinja"):
        before = (changed / name).read_text() if (changed / name).exists() else None
        (changed / name).write_text('{"another": 1}')
        with pytest.raises(UserError, match=f"begun when {name} in .* had another content"):
            repeat()
        if before is not None:
            (changed / name).write_text(before)


def test_token_ids_of_a_trained_run_come_from_its_tokenizer(tmp_path):
    model = small_model()
    write_folder(tmp_path / "source", model, random_tensors(model, "bf16"))
    import_hf(tmp_path / "source", tmp_path / "checkpoint")
    tokenizer = tmp_path / "checkpoint" / "tokenizer"
    words = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": None}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(words))
    added = [{"id": 7, "content": "<s>"}, {"id": 9, "content": "</s>"}]
    (tokenizer / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    (tmp_path / "checkpoint" / "hf_config.json").unlink()  # training writes none
    # An iteration's own folder finds what belongs to all.
    export_hf(tmp_path / "checkpoint" / "release", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (7, 9, None)
