"""An export divided as another folder is: the same files, byte for byte, as safetensors wrote."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from dsv3_plugin.checkpoint import export_hf, import_hf
from dsv3_plugin.checkpoint.conversion.same_files import compare_files
from dsv3_plugin.checkpoint.conversion.verify import verify
from dsv3_plugin.errors import UserError
from tests.checkpoint.samples import random_tensors, read_tensors, small_model, write_folder

MODEL = small_model()
FIRST = "model-00001-of-00003.safetensors"


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """An FP8 folder of three shards, and a checkpoint of it."""
    root = tmp_path_factory.mktemp("shards")
    write_folder(root / "hf", MODEL, random_tensors(MODEL, "fp8"), shards=3)
    (root / "hf" / "README.md").write_text("A card.")
    import_hf(root / "hf", root / "t")
    return root


def test_an_export_has_the_files_of_the_folder_it_came_from(imported, tmp_path, dsv3):
    done = dsv3("export", imported / "t", tmp_path / "out", "--fp8", "--shards-as", imported / "hf")
    assert done.code == 0, done.err
    for path in (imported / "hf").iterdir():
        if path.name != "README.md":
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
    said = dsv3("verify", "--bytes", imported / "hf", tmp_path / "out")
    assert said.code == 0
    passed_over = "(manifest.json, a conversion's own, is not compared)"
    assert said.out.startswith(f"5 files are the same, byte for byte {passed_over}.\n")
    assert f"README.md in {imported}/hf" in said.out


def test_in_other_types_each_tensor_is_in_its_file_all_the_same(imported, tmp_path):
    export_hf(imported / "t", tmp_path / "out", shards_as=imported / "hf")
    found = {path.name: load_file(path).keys() for path in (tmp_path / "out").glob("*.safetensors")}
    for path in (imported / "hf").glob("*.safetensors"):
        there = {name for name in load_file(path) if not name.endswith("_scale_inv")}
        assert found[path.name] == there
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: file for file, names in found.items() for name in names}
    assert not verify(imported / "hf", tmp_path / "out").differences


def test_scales_that_the_other_folder_lacks_go_with_their_weights(imported, tmp_path):
    export_hf(imported / "t", tmp_path / "bf16", shards_as=imported / "hf")
    export_hf(imported / "t", tmp_path / "fp8", fp8=True, shards_as=tmp_path / "bf16")
    assert read_tensors(tmp_path / "fp8").keys() == read_tensors(imported / "hf").keys()
    assert not verify(imported / "hf", tmp_path / "fp8").differences


def test_a_folder_of_another_model_or_none_is_refused(imported, tmp_path, dsv3):
    other = shutil.copytree(imported / "hf", tmp_path / "other")
    tensors = load_file(other / FIRST)
    name, _ = tensors.popitem()
    save_file(tensors, other / FIRST)
    index = json.loads((other / "model.safetensors.index.json").read_text())
    del index["weight_map"][name]
    (other / "model.safetensors.index.json").write_text(json.dumps(index))
    if name.endswith("_scale_inv"):
        export_hf(imported / "t", tmp_path / "out", fp8=True, shards_as=other)
    else:
        with pytest.raises(UserError, match=f"{name} is in no file of {other}"):
            export_hf(imported / "t", tmp_path / "out", fp8=True, shards_as=other)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no safetensors"):
        export_hf(imported / "t", tmp_path / "no", shards_as=tmp_path / "empty")
    with pytest.raises(UserError, match=r"is no folder, .* or leave --shards-as out"):
        export_hf(imported / "t", tmp_path / "no", shards_as=tmp_path / "nowhere")
    both = dsv3("export", imported / "t", tmp_path / "no", "--shards-as", other, "--shard-size=1GB")
    assert "leave one out" in both.err
    assert not (tmp_path / "no").exists()


def test_another_division_is_no_continuation(imported, tmp_path):
    export_hf(imported / "t", tmp_path / "out", shards_as=imported / "hf")
    again = export_hf(imported / "t", tmp_path / "out", shards_as=imported / "hf", resume=True)
    assert again.was_complete
    with pytest.raises(UserError, match=f"was begun with --shards-as {imported}/hf, not without"):
        export_hf(imported / "t", tmp_path / "out", resume=True)


def test_files_that_differ_are_named_with_the_first_byte(imported, tmp_path, dsv3):
    copy = shutil.copytree(imported / "hf", tmp_path / "copy")
    data = bytearray((copy / FIRST).read_bytes())
    data[1234] ^= 1
    (copy / FIRST).write_bytes(data)
    (copy / "README.md").write_text("Another card.")
    (copy / "model-00002-of-00003.safetensors").unlink()
    found = compare_files(imported / "hf", copy)
    assert {difference.name: difference.what for difference in found.differences} == {
        FIRST: "differ from byte 1,234 on",
        "README.md": "7 bytes and 13",
        "model-00002-of-00003.safetensors": f"only in {imported / 'hf'}",
    }
    assert (found.equal, found.only) == (3, [])
    said = dsv3("verify", "--bytes", imported / "hf", copy, "--json")
    assert said.code == 1
    assert json.loads(said.out)["equal"] == 3
    said = dsv3("verify", "--bytes", imported / "hf", copy)
    assert said.out.endswith(
        "\nWithout --bytes tensors are compared, in whichever files they lie.\n"
    )
    assert dsv3("verify", "--bytes", copy).code == 2
    assert "belong to comparing tensors" in dsv3("verify", "--bytes", "a", "b", "--tolerance=1").err
