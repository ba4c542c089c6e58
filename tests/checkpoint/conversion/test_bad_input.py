"""What is wrong is one sentence naming tensor and file; the source stays, the target is marked."""

import errno
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsv3_plugin import cli
from dsv3_plugin.checkpoint import export_hf, import_hf
from dsv3_plugin.checkpoint.conversion import convert, journal
from dsv3_plugin.checkpoint.conversion.verify import verify
from dsv3_plugin.checkpoint.conversion.weights import open_weights
from dsv3_plugin.checkpoint.inspect import inspect
from dsv3_plugin.errors import UserError
from tests.checkpoint.checkpoint_samples import E4M3, random_tensors, small_model, write_folder

MODEL = small_model()
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE_INDEX = "pytorch_model.bin.index.json"
O_PROJ = "model.layers.0.self_attn.o_proj.weight"


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    for form in ("bf16", "fp8"):
        write_folder(root / form, MODEL, random_tensors(MODEL, form))
    import_hf(root / "bf16", root / "checkpoint")
    return root


@pytest.fixture
def source(sources, tmp_path):
    """A copy to damage."""
    return shutil.copytree(sources / "bf16", tmp_path / "source")


@pytest.fixture
def fp8_source(sources, tmp_path):
    return shutil.copytree(sources / "fp8", tmp_path / "source")


@pytest.fixture
def checkpoint(sources, tmp_path):
    return shutil.copytree(sources / "checkpoint", tmp_path / "checkpoint")


def edit(folder, change):
    """Rewrites the shards after `change(tensors by name)`, and the index to match."""
    index = {}
    for file in (FIRST, SECOND):
        tensors = load_file(folder / file)
        change(tensors)
        save_file(tensors, folder / file)
        index |= dict.fromkeys(tensors, file)
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))


def refused(source, target, *words, **options):
    """The import is refused with a sentence that has these words; says what is left behind."""
    before = {p.name: p.read_bytes() for p in source.iterdir()}
    with pytest.raises(UserError) as caught:
        import_hf(source, target, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    for word in words:
        assert str(word) in sentence, sentence
    assert {p.name: p.read_bytes() for p in source.iterdir()} == before
    assert not (target / "latest_checkpointed_iteration.txt").exists()
    if target.exists():
        assert (target / "INCOMPLETE").exists()
        with pytest.raises(UserError, match="unfinished"):
            open_weights(target)
    return sentence


def rename(tensors, old, new):
    if old in tensors:
        tensors[new] = tensors.pop(old)


def test_missing_shard(source, tmp_path):
    (source / SECOND).unlink()
    refused(source, tmp_path / "t", source / SECOND, "model.norm.weight", "missing")


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


def test_what_is_dropped_is_said(source, tmp_path, monkeypatch, capsys):
    name = "model.layers.{}.self_attn.rotary_emb.inv_freq"
    edit(source, lambda t: t.update({name.format(2 * len(t) % 3): torch.ones(4)}))
    dropped = [n for f in (FIRST, SECOND) for n in load_file(source / f) if "inv_freq" in n]
    words = ["dsv3", "import", str(source), str(tmp_path / "t")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert f"Dropped {len(dropped)} that every reader computes itself: {dropped[0]}" in said
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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [None, "keep-fp8"])
def test_scale_that_is_no_number(fp8_source, tmp_path, value, dtype):
    name = O_PROJ + "_scale_inv"
    edit(fp8_source, lambda t: t[name].view(-1)[-1:].fill_(value) if name in t else None)
    refused(fp8_source, tmp_path / "t", name, "NaN or an infinity", "safetensors", dtype=dtype)


def test_scale_missing_or_alone(fp8_source, tmp_path):
    edit(fp8_source, lambda t: t.pop(O_PROJ + "_scale_inv", None))
    refused(fp8_source, tmp_path / "t", O_PROJ, "is FP8 and has no")
    edit(fp8_source, lambda t: rename(t, "model.norm.weight", "model.norm.weight_scale_inv"))
    refused(fp8_source, tmp_path / "t", "model.norm.weight_scale_inv")


def test_other_block_size(fp8_source, tmp_path):
    config = json.loads((fp8_source / "config.json").read_text())
    config["quantization_config"] = {"weight_block_size": [64, 64]}
    (fp8_source / "config.json").write_text(json.dumps(config))
    refused(fp8_source, tmp_path / "t", "weight_block_size", "[64, 64]")


@pytest.mark.parametrize(
    ("form", "said", "words"),
    [
        ("bf16", {"quant_method": "fp8"}, ["quantization_config", "no tensor beside it is FP8"]),
        ("bf16", {"quant_method": "gptq", "bits": 4}, ["quant_method 'gptq'", "only 'fp8'"]),
        (
            "fp8",
            None,
            ["is FP8, but", "has no quantization_config", "model.layers.", "safetensors"],
        ),
        ("fp8", [], ["quantization_config [] is no object"]),
        ("fp8", "fp8", ["quantization_config 'fp8' is no object"]),
        ("fp8", {"weight_block_size": None}, ["weight_block_size None", "only [128, 128]"]),
        ("fp8", {"weight_block_size": 128}, ["weight_block_size 128", "only [128, 128]"]),
        ("fp8", {"quant_method": "compressed-tensors"}, ["quant_method 'compressed-tensors'"]),
    ],
)
def test_quantisation_that_config_and_tensors_tell_otherwise(sources, tmp_path, form, said, words):
    folder = shutil.copytree(sources / form, tmp_path / "source")
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": said}
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, tmp_path / "t", folder / "config.json", *words)


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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hidden_layers": 4}, ["model.layers.3.", "no tensor of the model"]),
        ({"num_hidden_layers": 2}, ["model.layers.3.", "no tensor of the model"]),
        ({"hidden_size": 128}, ["has shape", "by config.json"]),
        ({"n_routed_experts": 8}, ["by config.json"]),
        ({"model_type": "llama"}, ["llama"]),
    ],
)
def test_config_that_disagrees_with_the_tensors(source, tmp_path, change, words):
    config = json.loads((source / "config.json").read_text()) | change
    (source / "config.json").write_text(json.dumps(config))
    refused(source, tmp_path / "t", *words)


def test_no_config_and_no_folder(source, tmp_path):
    (source / "config.json").unlink()
    refused(source, tmp_path / "t", "config.json")
    with pytest.raises(UserError, match="is no folder"):
        import_hf(tmp_path / "nowhere", tmp_path / "t")


def test_pickles_are_refused_unless_asked_for(source, tmp_path):
    tensors = load_file(source / FIRST) | load_file(source / SECOND)
    for file in (FIRST, SECOND, INDEX):
        (source / file).unlink()
    torch.save(tensors, source / "pytorch_model.bin")
    refused(source, tmp_path / "t", "pytorch_model.bin", "--allow-pickle")
    import_hf(source, tmp_path / "t", allow_pickle=True)
    export_hf(tmp_path / "t", tmp_path / "out")
    out = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(out[name], tensor) for name, tensor in tensors.items())


@pytest.fixture
def pickled(source):
    """The folder with its weights in two pickles and an index, and what a training leaves."""
    index = {}
    for number, file in enumerate((FIRST, SECOND), start=1):
        tensors = load_file(source / file)
        (source / file).unlink()
        torch.save(tensors, source / f"pytorch_model-{number:05d}-of-00002.bin")
        index |= dict.fromkeys(tensors, f"pytorch_model-{number:05d}-of-00002.bin")
    (source / INDEX).unlink()
    (source / PICKLE_INDEX).write_text(json.dumps({"weight_map": index}))
    for name in ("training_args.bin", "optimizer.pt", "rng_state.pth"):
        torch.save({"state": {"lr": 1.0}}, source / name)
    return source


@pytest.mark.parametrize("index", [True, False])
def test_pickles_beside_the_weights_are_passed_over(pickled, checkpoint, tmp_path, index):
    if not index:
        (pickled / PICKLE_INDEX).unlink()
    import_hf(pickled, tmp_path / "t", allow_pickle=True)
    assert not verify(pickled, checkpoint, allow_pickle=True).differences
    with pytest.raises(UserError, match="--allow-pickle"):
        verify(pickled, checkpoint)


def test_weights_pickled_under_another_name(pickled, tmp_path):
    (pickled / PICKLE_INDEX).unlink()
    for number, file in enumerate(sorted(pickled.glob("pytorch_model*.bin"))):
        file.rename(pickled / f"part-{number}.pt")
    import_hf(pickled, tmp_path / "t", allow_pickle=True)


def test_missing_pickled_shard_is_named(pickled, tmp_path):
    (pickled / "pytorch_model-00002-of-00002.bin").unlink()
    refused(pickled, tmp_path / "t", "pytorch_model-00002-of-00002.bin is missing", PICKLE_INDEX,
            "says it holds model.", allow_pickle=True)  # fmt: skip


def test_pickles_of_an_old_torch_are_read(pickled, checkpoint, tmp_path):
    for file in pickled.glob("pytorch_model*.bin"):
        content = torch.load(file)
        torch.save(content, file, _use_new_zipfile_serialization=False)
    import_hf(pickled, tmp_path / "t", allow_pickle=True)
    assert not verify(tmp_path / "t", checkpoint).differences


def test_pickle_that_is_damaged_says_how(pickled, tmp_path):
    file = pickled / "pytorch_model-00001-of-00002.bin"
    file.write_bytes(b"no pickle at all")
    refused(pickled, tmp_path / "t", f"{file} cannot be read as tensors only: ", "eights",
            allow_pickle=True)  # fmt: skip


def test_inspect_says_that_weights_are_pickled(pickled, monkeypatch, capsys):
    found = inspect(pickled)
    assert found.pickled == [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    assert not found.complete
    assert not found.missing
    monkeypatch.setattr(sys, "argv", ["dsv3", "inspect", str(pickled)])
    with pytest.raises(SystemExit):
        cli.main()
    assert "Hugging Face folder, pickled" in capsys.readouterr().out


def test_verify_takes_allow_pickle(pickled, checkpoint, monkeypatch):
    words = ["dsv3", "verify", str(pickled), str(checkpoint), "--allow-pickle"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code


class Evil:
    """What a pickle can do: create a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_that_runs_code_is_refused_even_then(source, tmp_path):
    for file in (FIRST, SECOND, INDEX):
        (source / file).unlink()
    torch.save({"x": Evil(tmp_path / "run")}, source / "pytorch_model.bin")
    refused(source, tmp_path / "t", "pytorch_model.bin", allow_pickle=True)
    assert not (tmp_path / "run").exists()


def test_metadata_that_runs_code_is_not_run(checkpoint, tmp_path):
    import pickle

    (checkpoint / "release" / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "run")))
    with pytest.raises(UserError, match="damaged"):
        export_hf(checkpoint, tmp_path / "out")
    assert not (tmp_path / "run").exists()


def test_target_that_is_in_use(source, tmp_path):
    target = tmp_path / "t"
    target.mkdir()
    (target / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        import_hf(source, target)
    assert [p.name for p in target.iterdir()] == ["precious.txt"]
    with pytest.raises(UserError, match="not empty"):
        import_hf(source, source)


def test_target_that_cannot_be_written(source, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written: not a directory"):
        import_hf(source, tmp_path / "file" / "t")
    opened = os.open

    def read_only(path, flags, *mode, **options):
        if flags & os.O_CREAT and str(path).endswith(".distcp"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, flags, *mode, **options)

    monkeypatch.setattr(os, "open", read_only)
    refused(source, tmp_path / "t", "__0_0.distcp", "read-only file system")


def test_disk_too_small_is_said_before_anything_is_written(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 1000))
    with pytest.raises(UserError, match=r"needs [\d.]+ \w+ more, its disk has [\d.]+ \w+ free"):
        import_hf(source, tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_disk_that_fills_up(source, checkpoint, tmp_path, monkeypatch):
    written, pwrite = [], os.pwrite

    def full(descriptor, data, position):
        if len(written) > 40:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(len(data))
        return pwrite(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", full)
    refused(source, tmp_path / "t", "disk is full", "__0_0.distcp", "--resume")
    written.clear()
    with pytest.raises(UserError, match="disk is full"):
        export_hf(checkpoint, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors"))
    monkeypatch.undo()
    import_hf(source, tmp_path / "t", resume=True)
    export_hf(checkpoint, tmp_path / "out", resume=True)
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        stored = open_weights(tmp_path / "t").rows(name, 0, tensor.shape[0])
        assert torch.equal(tensor, stored)


def test_disk_that_is_full_names_the_tensor(source, tmp_path, monkeypatch):
    def full(descriptor, data, position):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    sentence = refused(source, tmp_path / "t", "disk is full", "__0_0.distcp", workers=1)
    assert re.search(r"full: \S+weight in \S+distcp cannot be written", sentence)


def test_sync_that_fails_vouches_for_nothing(source, checkpoint, tmp_path, monkeypatch):
    """The kernel forgets what it could not write: the next sync succeeds, the bytes are gone."""
    fsync, failures = os.fsync, []

    def lossy(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path.endswith((".distcp", ".part")) and not failures:
            failures.append(path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return fsync(descriptor)

    monkeypatch.setattr(os, "fsync", lossy)
    for committed in (0, 1 << 40):  # with every tensor, and at the end
        monkeypatch.setattr(journal, "_COMMIT_BYTES", committed)
        failures.clear()
        refused(source, tmp_path / f"t{committed}", "disk is full", "__0_0.distcp")
        assert (tmp_path / f"t{committed}" / "INCOMPLETE").read_bytes().count(b"\n") == 1
        failures.clear()
        with pytest.raises(UserError, match=r"disk is full: .*part cannot be written"):
            export_hf(checkpoint, tmp_path / f"out{committed}")
        assert (tmp_path / f"out{committed}" / "INCOMPLETE").read_bytes().count(b"\n") == 1


def test_a_rename_that_fails_is_a_sentence(checkpoint, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(convert.manifest, "write", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_hf(checkpoint, tmp_path / "out")
    part = tmp_path / "out" / "model.safetensors.part"
    part.rename(tmp_path / "out" / "model.safetensors")

    def refuse(self, target):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(UserError, match="out cannot be written: read-only file system"):
        export_hf(checkpoint, tmp_path / "out", resume=True)


def test_link_to_a_shard_that_is_gone(source, tmp_path):
    for file in (FIRST, SECOND, INDEX):
        (source / file).unlink()
    (source / FIRST).symlink_to(tmp_path / "blob")
    for read in (inspect, lambda folder: import_hf(folder, tmp_path / "t")):
        with pytest.raises(UserError, match=f"{FIRST} is no file, but a folder or a link to noth"):
            read(source)


def test_target_inside_the_source_and_the_other_way_round(source, checkpoint, tmp_path):
    for convert_, reads in ((import_hf, source), (export_hf, checkpoint),
                            (export_hf, checkpoint / "release")):  # fmt: skip
        before = sorted(reads.rglob("*"))
        with pytest.raises(UserError, match="lie inside each other: choose a folder beside"):
            convert_(reads, reads / "new" / "t")
        with pytest.raises(UserError, match="lie inside each other"):
            convert_(reads, tmp_path)
        assert sorted(reads.rglob("*")) == before
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(UserError, match="lie inside each other"):
        import_hf(source, tmp_path / "link" / "t")


def test_truncated_checkpoint(checkpoint, tmp_path):
    data = checkpoint / "release" / "__0_0.distcp"
    os.truncate(data, data.stat().st_size - 100)
    with pytest.raises(UserError, match=r"__0_0.distcp is cut short: .* should end at byte"):
        export_hf(checkpoint, tmp_path / "out")
    data.unlink()
    with pytest.raises(UserError, match=r"__0_0.distcp is missing; it holds"):
        export_hf(checkpoint, tmp_path / "out")


def test_checkpoint_with_damaged_container(checkpoint, tmp_path):
    key = "decoder.final_layernorm.weight"
    from dsv3_plugin.checkpoint.formats.dist_metadata import read_contents

    _, _, place = read_contents(checkpoint / "release").tensors[key].chunks[0]
    with (checkpoint / "release" / place.file).open("r+b") as handle:
        handle.seek(place.position + place.length - 40)
        handle.write(bytes(40))
    with pytest.raises(UserError, match=f"{key} in .*distcp"):
        export_hf(checkpoint, tmp_path / "out")


def test_checkpoint_of_another_model(checkpoint, tmp_path):
    small_model(moe_ffn_hidden_size=80, moe_shared_expert_intermediate_size=80).write(
        checkpoint / "model.yaml"
    )
    with pytest.raises(UserError, match=r"linear_fc1.weight in .*distcp has shape .* model.yaml"):
        export_hf(checkpoint, tmp_path / "out")
    small_model(num_layers=2, moe_layer_freq="[0,1]").write(checkpoint / "model.yaml")
    with pytest.raises(UserError, match=r"decoder.layers.2.* is no weight of the model"):
        export_hf(checkpoint, tmp_path / "out")
    (checkpoint / "model.yaml").unlink()
    with pytest.raises(UserError, match=r"neither a model.yaml"):
        export_hf(checkpoint, tmp_path / "out")


def test_directions_mixed_up(source, checkpoint, tmp_path):
    with pytest.raises(UserError, match="is a Hugging Face folder, not a Megatron checkpoint"):
        export_hf(source, tmp_path / "out")
    with pytest.raises(UserError, match="is a Megatron checkpoint, not a Hugging Face folder"):
        import_hf(checkpoint, tmp_path / "out")


@pytest.mark.parametrize(
    "words",
    [
        ["import", "SOURCE", "TARGET"],
        ["import", "SOURCE", "TARGET", "--dtype", "int8"],
        ["export", "SOURCE", "TARGET"],
        ["export", "SOURCE", "TARGET", "--shard-size", "5Q"],
        ["verify", "SOURCE", "TARGET"],
        ["inspect", "TARGET"],
        ["inspect", "SOURCE"],
    ],
)
def test_command_line_prints_the_sentence_and_exits_with_2(
    source, tmp_path, monkeypatch, capsys, words
):
    (source / FIRST).unlink()
    places = {"SOURCE": str(source), "TARGET": str(tmp_path / "t")}
    monkeypatch.setattr(sys, "argv", ["dsv3", *(places.get(word, word) for word in words)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("dsv3: ")
    assert "\n" not in said


def test_fp8_source_with_nan_bytes_is_kept_as_it_is(fp8_source, tmp_path):
    """A NaN weight is the model's own affair: kept, not hidden."""

    def spoil(tensors):
        if O_PROJ in tensors:
            tensors[O_PROJ].view(torch.uint8)[0, 0] = 0x7F

    edit(fp8_source, spoil)
    import_hf(fp8_source, tmp_path / "t", dtype="keep-fp8")
    export_hf(tmp_path / "t", tmp_path / "out", fp8=True)
    out = load_file(tmp_path / "out" / "model.safetensors")
    assert out[O_PROJ].dtype == E4M3
    assert out[O_PROJ].view(torch.uint8)[0, 0] == 0x7F
