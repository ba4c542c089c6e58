"""What is wrong with a folder is one sentence naming tensor and file; the source stays as it is."""

import json
import os
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsv3_plugin.checkpoint import export_hf, import_hf
from dsv3_plugin.checkpoint.formats.shard_size import shard_bytes, shard_text
from dsv3_plugin.checkpoint.inspect import inspect
from dsv3_plugin.errors import UserError
from tests.checkpoint.conversion.damage import FIRST, INDEX, O_PROJ, SECOND, edit, refused, rename
from tests.checkpoint.samples import overwrite


def test_missing_shard(source, tmp_path):
    (source / SECOND).unlink()
    refused(source, tmp_path / "t", source / SECOND, "model.norm.weight", "missing", "download it")


def test_broken_shards_are_told_together(source, tmp_path):
    (source / SECOND).unlink()
    os.truncate(source / FIRST, 100)
    refused(
        source, tmp_path / "t", f"{source / FIRST} is no whole safetensors file",
        "header is cut short: download it again (1 more are missing or damaged, too; dsv3 inspect",
    )  # fmt: skip


def test_truncated_shard(source, tmp_path):
    os.truncate(source / FIRST, (source / FIRST).stat().st_size - 10)
    refused(source, tmp_path / "t", source / FIRST, "cut short", ".weight")


def test_shard_truncated_in_its_header(source, tmp_path):
    os.truncate(source / FIRST, 100)
    refused(source, tmp_path / "t", source / FIRST, "header is cut short")


def test_damaged_header(source, tmp_path):
    with (source / FIRST).open("r+b") as handle:
        handle.seek(8)
        handle.write(b"}{")
    refused(source, tmp_path / "t", source / FIRST, "header is damaged")


def test_bytes_that_belong_to_no_tensor(source, tmp_path):
    with (source / FIRST).open("ab") as handle:
        handle.write(b"more")
    refused(source, tmp_path / "t", source / FIRST, "4 bytes that no tensor accounts for")


def test_index_names_a_file_that_is_not_there(source, tmp_path):
    index = json.loads((source / INDEX).read_text())
    index["weight_map"][O_PROJ] = "model-00009.safetensors"
    (source / INDEX).write_text(json.dumps(index))
    refused(source, tmp_path / "t", "model-00009.safetensors", O_PROJ)


def test_index_and_shards_disagree(source, tmp_path):
    index = json.loads((source / INDEX).read_text())
    del index["weight_map"][O_PROJ]
    (source / INDEX).write_text(json.dumps(index))
    refused(source, tmp_path / "t", O_PROJ, "is not in", INDEX)


def test_file_that_the_index_does_not_name(source, tmp_path):
    save_file({"model.extra": torch.ones(3)}, source / "more.safetensors")
    refused(source, tmp_path / "t", source / "more.safetensors", f"in no entry of {INDEX}")


def test_what_is_dropped_is_said(source, tmp_path, dsv3):
    name = "model.layers.{}.self_attn.rotary_emb.inv_freq"
    edit(source, lambda t: t.update({name.format(2 * len(t) % 3): torch.ones(4)}))
    dropped = [n for f in (FIRST, SECOND) for n in load_file(source / f) if "inv_freq" in n]
    said = dsv3("import", source, tmp_path / "t")
    assert said.code == 0
    assert f"Dropped {len(dropped)} that every reader computes itself: {dropped[0]}" in said.out
    assert json.loads((tmp_path / "t" / "manifest.json").read_text())["dropped"] == dropped
    assert import_hf(source, tmp_path / "again").dropped == tuple(dropped)


def test_damaged_index(source, tmp_path):
    (source / INDEX).write_text('{"weight_map": {"a": "../../etc/passwd"}}')
    refused(source, tmp_path / "t", source / INDEX, "damaged")


def test_wrong_shape(source, tmp_path):
    edit(source, lambda t: t.update({O_PROJ: t[O_PROJ].t().contiguous()} if O_PROJ in t else {}))
    refused(source, tmp_path / "t", O_PROJ, "has shape", "safetensors")


def test_unknown_tensor(source, tmp_path):
    new = "model.layers.0.self_attn.indexer.weight"
    edit(source, lambda t: rename(t, O_PROJ, new))
    refused(source, tmp_path / "t", new, "no tensor of the model", "safetensors")


def test_missing_tensor(source, tmp_path):
    edit(source, lambda t: t.pop(O_PROJ, None))
    refused(source, tmp_path / "t", O_PROJ, "missing from", source)


def test_mtp_layer_missing_though_the_config_has_one(source, tmp_path):
    edit(source, lambda t: [t.pop(n) for n in list(t) if n.startswith("model.layers.3.")])
    refused(source, tmp_path / "t", "give --without-mtp", "model.layers.3.")


def test_copies_may_be_left_out_and_are_written_again(source, tmp_path):
    names = ("model.layers.3.embed_tokens.weight", "model.layers.3.shared_head.head.weight")
    edit(source, lambda t: [t.pop(n, None) for n in names])
    import_hf(source, tmp_path / "t")
    export_hf(tmp_path / "t", tmp_path / "out")
    out = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(out[names[0]], out["model.embed_tokens.weight"])
    assert torch.equal(out[names[1]], out["lm_head.weight"])


def test_a_copy_that_is_none(source, tmp_path):
    name = "model.layers.3.shared_head.head.weight"
    edit(source, lambda t: t[name].add_(1) if name in t else None)
    refused(source, tmp_path / "t", name, "differs from lm_head.weight", "safetensors")


def test_tensor_stored_twice_in_two_shards(source, tmp_path):
    (source / INDEX).unlink()
    tensors = load_file(source / FIRST)
    tensors[O_PROJ] = load_file(source / SECOND).get(O_PROJ, tensors.get(O_PROJ))
    save_file(tensors, source / FIRST)
    second = load_file(source / SECOND)
    second[O_PROJ] = tensors[O_PROJ]
    save_file(second, source / SECOND)
    refused(source, tmp_path / "t", O_PROJ, "stored twice", FIRST, SECOND)


def test_tensor_stored_twice_in_one_header(source, tmp_path):
    (source / INDEX).unlink()
    (source / SECOND).unlink()
    data = (source / FIRST).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip()
    name = next(n for n in json.loads(header) if n != "__metadata__")
    again = json.dumps({name: json.loads(header)[name]})[1:-1].encode()
    header = header[:-1] + b"," + again + b"}"
    (source / FIRST).write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    refused(source, tmp_path / "t", name, "stored twice", FIRST)


def test_tensor_that_stands_twice_in_the_index(source, tmp_path):
    text = (source / INDEX).read_text()
    entry = json.dumps(O_PROJ) + ": " + json.dumps(FIRST)
    (source / INDEX).write_text(text.replace('"weight_map": {', f'"weight_map": {{{entry},', 1))
    assert (source / INDEX).read_text() != text
    refused(source, tmp_path / "t", O_PROJ, "stands twice", INDEX)


def test_fields_that_are_null_are_absent(source, tmp_path):
    config = json.loads((source / "config.json").read_text()) | {"quantization_config": None}
    (source / "config.json").write_text(json.dumps(config))
    (source / "tokenizer.json").write_text(json.dumps({"added_tokens": None}))
    import_hf(source, tmp_path / "t")
    (tmp_path / "t" / "hf_config.json").unlink()  # now the tokenizer is asked for the ids
    export_hf(tmp_path / "t", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["bos_token_id"] is None


def test_type_that_is_no_weight(source, tmp_path):
    edit(source, lambda t: t.update({O_PROJ: t[O_PROJ].to(torch.int8)} if O_PROJ in t else {}))
    refused(source, tmp_path / "t", O_PROJ, "int8", "safetensors")


_DEPTH = "these weights have 3 layers before that of multi-token prediction"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hidden_layers": 4}, ["model.layers.3.", "no tensor of the model", _DEPTH, "is 4"]),
        ({"num_hidden_layers": 2}, ["model.layers.3.", "no tensor of the model", _DEPTH, "is 2"]),
        ({"hidden_size": 128}, ["has shape", "by hidden_size 128 in", "take the config.json that"]),
        ({"n_routed_experts": 8}, ["by n_routed_experts 8 in"]),
        ({"v_head_dim": 24}, ["by num_attention_heads 4 and", "v_head_dim 24 in"]),
        ({"model_type": "llama"}, ["source/config.json: model_type 'llama'"]),
        ({"hidden_size": "many"}, ["source/config.json: hidden_size 'many' is not"]),
    ],
)
def test_config_that_disagrees_with_the_tensors(source, tmp_path, change, words):
    config = json.loads((source / "config.json").read_text()) | change
    (source / "config.json").write_text(json.dumps(config))
    refused(source, tmp_path / "t", *words)


@pytest.mark.parametrize(
    ("text", "words"), [("{", "is not JSON (Expecting"), ("[]", "holds no JSON object, as a model")]
)
def test_config_that_is_none(source, tmp_path, text, words, dsv3):
    (source / "config.json").write_text(text)
    refused(source, tmp_path / "t", f"{source}/config.json {words}", ": download it again.")
    said = dsv3("model", "from-hf", source)
    assert (said.code, words in said.err, "download it again." in said.err) == (2, True, True)


def test_no_config_and_no_folder(source, tmp_path, dsv3):
    (source / "config.json").unlink()
    refused(source, tmp_path / "t", "config.json")
    for verb in (("inspect",), ("verify",), ("verify", "--bytes")):
        words = (*verb, tmp_path / "nowhere", *([tmp_path / "t"] if verb != ("inspect",) else []))
        said = dsv3(*words)
        assert (said.code, "nowhere does not exist: name a Hugging Face folder" in said.err) == (
            2,
            True,
        )
    said = dsv3("inspect", file := source / FIRST)
    assert (said.code, said.err) == (
        2,
        f"dsv3: {file} is a file, and no folder: name the one that it lies in.\n",
    )


def test_link_to_a_shard_that_is_gone(source, tmp_path):
    for file in (FIRST, SECOND, INDEX):
        (source / file).unlink()
    (source / FIRST).symlink_to(source / "blob")
    sentence = f"{source / FIRST} is no file, but a folder or a link to nothing: download it again."
    with pytest.raises(UserError) as caught:
        import_hf(source, tmp_path / "t")
    assert [str(caught.value)] == inspect(source).damaged == [sentence]


@pytest.mark.parametrize(
    "name", [FIRST, INDEX, "config.json", "tokenizer.json", "generation_config.json"]
)
def test_link_to_what_is_not_the_folders(source, tmp_path, name):
    """It would be read, or copied, and end in what somebody publishes."""
    secret = tmp_path / "secret"
    if (source / name).exists():
        (source / name).rename(secret)
    else:
        secret.write_text('{"a": "secret"}')
    (source / name).symlink_to(secret)
    refused(source, tmp_path / "t", name, f"leads out of its folder, to {secret}")


def test_pickled_weights_behind_a_link(source, tmp_path):
    for path in source.glob("*.safetensors*"):
        path.unlink()
    torch.save({"a": torch.ones(2)}, tmp_path / "secret.bin")
    (source / "pytorch_model.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin leads out of its folder"):
        import_hf(source, tmp_path / "t", allow_pickle=True)


def test_the_hugging_face_cache_is_one_folder(source, tmp_path):
    snapshot, blobs = (tmp_path / "models--org--name" / name for name in ("snapshots/0", "blobs"))
    (source / "tokenizer.json").write_text("{}")
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in source.iterdir():
        (blobs / f"hash-{path.name}").write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/hash-{path.name}")
    import_hf(snapshot, tmp_path / "t")
    assert (tmp_path / "t" / "tokenizer" / "tokenizer.json").read_text() == "{}"
    assert not any(path.is_symlink() for path in (tmp_path / "t").rglob("*"))


def test_links_in_a_checkpoint(source, tmp_path):
    (source / "tokenizer.json").write_text("{}")
    import_hf(source, tmp_path / "t")
    for name in ("tokenizer/tokenizer.json", "tokenizer", "hf_config.json", "model.yaml"):
        path = tmp_path / "t" / name
        path.rename(tmp_path / "aside")
        path.symlink_to(tmp_path / "aside")
        with pytest.raises(UserError, match=f"{name} leads out of its folder, to "):
            export_hf(tmp_path / "t", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        path.unlink()
        (tmp_path / "aside").rename(path)
    shard = next((tmp_path / "t" / "release").glob("*.distcp"))
    shard.rename(tmp_path / "aside")
    shard.symlink_to(tmp_path / "aside")
    with pytest.raises(UserError, match=f"{shard.name} leads out of its folder, to "):
        export_hf(tmp_path / "t", tmp_path / "out")


@pytest.mark.parametrize(
    "words",
    [
        ["import", "SOURCE", "TARGET"],
        ["import", "SOURCE", "TARGET", "--dtype", "int8"],
        ["export", "SOURCE", "TARGET"],
        ["export", "SOURCE", "TARGET", "--shard-size", "5Q"],
        ["export", "SOURCE", "TARGET", "--shard-size", "5"],
        ["verify", "SOURCE", "TARGET"],
        ["inspect", "TARGET"],
    ],
)
def test_command_line_prints_the_sentence_and_exits_with_2(source, tmp_path, dsv3, words):
    (source / FIRST).unlink()
    places = {"SOURCE": source, "TARGET": tmp_path / "t"}
    said = dsv3(*(places.get(word, word) for word in words))
    assert said.code == 2
    assert said.err.startswith("dsv3: ")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("convert", "dtype", "way"),
    [
        (import_hf, "bfloat16", "it is called bf16 here."),
        (import_hf, "fp16", "weights in FP16 stay so without --dtype, and no others become FP16; "),
        (export_hf, "float16", "weights .* become FP16; choose from bf16, fp32."),
        (export_hf, "float32", "it is called fp32 here."),
        (import_hf, "fp8", "take keep-fp8."),
        (export_hf, "fp8", "--fp8 writes that, without --dtype."),
        (export_hf, "int8", "choose from bf16, fp32."),
    ],
)
def test_a_type_under_another_name(tmp_path, convert, dtype, way):
    with pytest.raises(UserError, match=f"the type '{dtype}' is not known: {way}"):
        convert(tmp_path, tmp_path / "t", dtype=dtype)


@pytest.mark.parametrize("text", ["5GB", "1.5GB", "300KB", "5GiB", "512MiB", "1000001"])
def test_a_size_of_a_shard_is_told_as_it_was_typed(text):
    digits, unit = re.fullmatch(r"([\d.]+)(\w*)", text).groups()
    of_one = {"": 1, "KB": 10**3, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}[unit]
    assert shard_text(int(float(digits) * of_one)) == text


def test_a_size_of_a_shard_in_bytes_was_meant_in_gigabytes():
    assert shard_bytes("1MB") == 10**6
    with pytest.raises(UserError, match=r"'5' would be less than 1MB, .*: write for example 5GB"):
        shard_bytes("5")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [O_PROJ, "model.layers.1.mlp.gate.e_score_correction_bias"])
def test_values_that_are_no_numbers(source, tmp_path, name, value):
    def spoil(tensors):
        if name in tensors:
            tensors[name].view(-1)[-1] = value

    edit(source, spoil)
    refused(source, tmp_path / "t", name, "NaN or an infinity", "safetensors")


def test_export_of_a_model_that_diverged(source, tmp_path):
    import_hf(source, tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "manifest.json").unlink()
    nan = torch.tensor([float("nan")], dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes()
    overwrite(tmp_path / "checkpoint", "decoder.final_layernorm.weight", nan)
    with pytest.raises(UserError, match=r"model.norm.weight in .* holds a NaN or an infinity"):
        export_hf(tmp_path / "checkpoint", tmp_path / "out")


def test_router_biases_that_are_all_zero_are_said(source, tmp_path, dsv3):
    bias = "model.layers.2.mlp.gate.e_score_correction_bias"

    def empty(tensors):
        if bias in tensors:
            tensors[bias].zero_()

    edit(source, empty)
    said = dsv3("import", source, tmp_path / "t")
    assert (said.code, "1 of the" in said.err, bias in said.err) == (0, True, True)


def test_tensor_that_config_denies_is_told_with_the_key(source, tmp_path):
    config = json.loads((source / "config.json").read_text()) | {"n_shared_experts": 0}
    (source / "config.json").write_text(json.dumps(config))
    refused(source, tmp_path / "t", "shared_experts", "(n_shared_experts 0)")


def test_tensor_that_config_promises_is_told_with_the_key(source, tmp_path):
    config = json.loads((source / "config.json").read_text()) | {"q_lora_rank": None}
    (source / "config.json").write_text(json.dumps(config))
    refused(source, tmp_path / "t", "self_attn.q_", "(q_lora_rank null)")
