"""verify finds what differs and nothing else; inspect tells what is there."""

import json
import os
import shutil
import sys

import pytest
import torch

from dsv3_plugin import cli
from dsv3_plugin.checkpoint import export_hf, import_hf
from dsv3_plugin.checkpoint.conversion import journal
from dsv3_plugin.checkpoint.conversion.verify import verify
from dsv3_plugin.checkpoint.inspect import inspect
from tests.checkpoint.samples import overwrite, random_tensors, small_model, write_folder

MODEL = small_model()
O_PROJ = "model.layers.0.self_attn.o_proj.weight"
NORM = "model.norm.weight"
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("verify")
    for form in ("bf16", "fp32", "fp8"):
        write_folder(root / form, MODEL, random_tensors(MODEL, form))
    import_hf(root / "fp8", root / "from-fp8")
    import_hf(root / "fp8", root / "kept-fp8", dtype="keep-fp8")
    import_hf(root / "fp32", root / "from-fp32")
    export_hf(root / "from-fp8", root / "out-bf16")
    return root


@pytest.mark.parametrize(
    ("a", "b"),
    [("fp8", "from-fp8"), ("fp8", "kept-fp8"), ("from-fp8", "kept-fp8"), ("kept-fp8", "fp8"),
     ("fp8", "out-bf16"), ("out-bf16", "from-fp8"), ("fp32", "from-fp32")],
)  # fmt: skip
def test_every_form_of_the_same_weights_is_the_same(root, a, b):
    found = verify(root / a, root / b)
    assert (found.differences, found.absent_copies) == ([], [])
    assert found.equal == len(random_tensors(MODEL, "bf16"))


def test_other_weights_differ_by_name_and_size(root, tmp_path, dsv3):
    tensors = random_tensors(MODEL, "fp32")
    tensors[O_PROJ][5, 7] += 0.25
    tensors[BIAS][1] = float("nan")
    tensors["model.norm.weight"][0] *= 1 + 2**-20
    del tensors["model.layers.3.shared_head.head.weight"]
    write_folder(tmp_path / "other", MODEL, tensors)
    found = verify(root / "fp32", tmp_path / "other")
    largest = {difference.name: difference.largest for difference in found.differences}
    assert largest.keys() == {O_PROJ, BIAS, "model.norm.weight"}
    assert largest[O_PROJ] == pytest.approx(0.25, abs=1e-6)
    assert largest[BIAS] != largest[BIAS]
    assert found.absent_copies == ["model.layers.3.shared_head.head.weight"]
    within = verify(root / "fp32", tmp_path / "other", tolerance=1e-3)
    assert {difference.name for difference in within.differences} == {O_PROJ, BIAS}
    said = dsv3("verify", root / "fp32", tmp_path / "other")
    assert said.code == 1
    assert f"{O_PROJ}: values differ, by up to 0.25" in said.out
    assert dsv3("verify", root / "fp8", root / "kept-fp8").code == 0


def test_one_changed_byte_is_found(root, tmp_path):
    shutil.copytree(root / "from-fp32", tmp_path / "copy")
    overwrite(tmp_path / "copy", "decoder.layers.1.mlp.experts.experts.linear_fc2.weight", b"\x00")
    found = verify(root / "from-fp32", tmp_path / "copy")
    assert [d.name for d in found.differences] == ["model.layers.1.mlp.experts.0.down_proj.weight"]


def test_changed_scale_is_found_between_two_fp8_forms(root, tmp_path):
    tensors = random_tensors(MODEL, "fp8")
    tensors[O_PROJ + "_scale_inv"][0, 0] *= 2
    write_folder(tmp_path / "other", MODEL, tensors)
    found = verify(root / "kept-fp8", tmp_path / "other")
    assert [difference.name for difference in found.differences] == [O_PROJ]


def changed(root, form, folder, **tensors):
    """A folder with the tensors of `form` but for these, written and compared with it."""
    write_folder(folder, MODEL, random_tensors(MODEL, form) | tensors)
    return folder


def test_fp8_forms_are_measured_by_their_values(root, tmp_path):
    """A distance, and a tolerance, is one of values and not of codes and scales."""
    tensors = random_tensors(MODEL, "fp8")
    scale = tensors[O_PROJ + "_scale_inv"]
    codes = tensors[O_PROJ].view(torch.uint8).clone()
    codes[0, 0] = 0x7E  # 448
    tensors[O_PROJ] = codes.view(torch.float8_e4m3fn)
    one = write_folder(tmp_path / "one", MODEL, tensors)
    other = codes.clone()
    other[0, 0] = 0x7D  # 416
    kept = import_and_keep(one, tmp_path / "kept")
    two = changed(root, "fp8", tmp_path / "two", **{O_PROJ: other.view(torch.float8_e4m3fn)})
    (difference,) = verify(kept, two).differences
    assert (difference.name, difference.what) == (O_PROJ, "values differ")
    assert difference.largest == pytest.approx(32 * float(scale[0, 0]), rel=1e-6)
    # The codes are 32 apart, the scales below hardly at all.
    assert not verify(kept, two, tolerance=33 * float(scale[0, 0])).differences
    doubled = changed(root, "fp8", tmp_path / "doubled",
                      **{O_PROJ: tensors[O_PROJ], O_PROJ + "_scale_inv": scale * 2})  # fmt: skip
    (difference,) = verify(kept, doubled, tolerance=2 * float(scale.max())).differences
    assert difference.largest == pytest.approx(448 * float(scale.max()), rel=0.01)


def import_and_keep(folder, checkpoint):
    import_hf(folder, checkpoint, dtype="keep-fp8")
    return checkpoint


def test_fp8_forms_of_the_same_values_and_other_bytes_are_said_so(root, tmp_path):
    name = O_PROJ + "_scale_inv"
    half = {O_PROJ: torch.full((136, 40), 2.0).to(torch.float8_e4m3fn), name: torch.ones(2, 1)}
    twice = {O_PROJ: torch.full((136, 40), 1.0).to(torch.float8_e4m3fn), name: torch.ones(2, 1) * 2}
    a = changed(root, "fp8", tmp_path / "a", **half)
    b = changed(root, "fp8", tmp_path / "b", **twice)
    (difference,) = verify(a, b).differences
    assert difference.what == "FP8 bytes or scales differ, their products do not"
    assert not verify(a, b, tolerance=1e-9).differences
    # Taken out of FP8 the weights are the same; the scales that an export takes are not.
    import_hf(a, tmp_path / "from-a")
    import_hf(b, tmp_path / "from-b")
    (difference,) = verify(tmp_path / "from-a", tmp_path / "from-b").differences
    assert difference.what == "the FP8 scales beside it differ"


def test_nans_and_infinities_are_equal_to_themselves(root, tmp_path):
    odd = torch.tensor([float("nan"), float("inf"), float("-inf"), 0.0, 1.0])
    odd = odd.repeat(28)[:136]
    wide = changed(root, "fp32", tmp_path / "wide", **{NORM: odd})
    half = changed(root, "fp32", tmp_path / "half", **{NORM: odd.bfloat16()})
    assert not verify(wide, half).differences
    assert not verify(wide, wide).differences
    bits = odd.clone().view(torch.int32)
    bits[0] += 1
    payload = changed(root, "fp32", tmp_path / "payload", **{NORM: bits.view(torch.float32)})
    (difference,) = verify(wide, payload).differences
    assert (difference.what, difference.largest) == ("bits of NaNs differ", 0.0)
    minus = odd.clone()
    minus[3] = -0.0
    minus = changed(root, "fp32", tmp_path / "minus", **{NORM: minus})
    (difference,) = verify(wide, minus).differences
    assert (difference.what, difference.largest) == ("signs of zero differ", 0.0)
    (difference,) = verify(payload, minus).differences
    assert difference.what == "bits of NaNs and signs of zero differ"
    one = odd.clone()
    one[1] = 5.0
    (difference,) = verify(wide, changed(root, "fp32", tmp_path / "one", **{NORM: one})).differences
    assert difference.largest == float("inf")


def test_models_that_read_the_same_tensors_otherwise_differ(root, tmp_path, dsv3):
    other = small_model(
        rotary_base=5e6, moe_router_num_groups=None, moe_router_group_topk=None, init_method_std=0.5
    )
    write_folder(tmp_path / "other", other, random_tensors(MODEL, "fp32"))
    found = verify(root / "fp32", tmp_path / "other")
    assert found.equal == len(random_tensors(MODEL, "bf16"))
    assert {d.name.removeprefix("model configuration: ") for d in found.differences} == {
        "rotary_base", "moe_router_num_groups", "moe_router_group_topk",
    }  # fmt: skip
    said = dsv3("verify", root / "from-fp32", tmp_path / "other")
    assert said.code == 1
    assert "model configuration: rotary_base: 10000.0 in" in said.out
    assert "5000000.0 in" in said.out


def test_models_of_other_shape_differ_everywhere(root, tmp_path):
    other = small_model(num_layers=2, moe_layer_freq="[0,1]", vocab_size=90)
    write_folder(tmp_path / "other", other, random_tensors(other, "fp32"))
    whats = {d.name: d.what for d in verify(root / "fp32", tmp_path / "other").differences}
    assert "shape [96, 136]" in whats["lm_head.weight"]
    assert whats["model.layers.3.eh_proj.weight"].startswith("only in")
    assert whats["model.layers.2.eh_proj.weight"].startswith("only in")


def test_what_is_the_same_by_value_is_not_told_as_bit_for_bit(root, tmp_path, dsv3):
    """Router biases are FP32 on both sides."""
    export_hf(root / "from-fp8", tmp_path / "hf", dtype="fp32")
    tensors = random_tensors(MODEL, "bf16")
    biases = sum(tensor.dtype == torch.float32 for tensor in tensors.values())
    said = dsv3("verify", root / "out-bf16", tmp_path / "hf")
    assert said.out.startswith(
        f"{len(tensors)} tensors are the same, {biases} bit for bit and "
        f"{len(tensors) - biases} by value, which are stored in unlike types.\n"
    )
    found = verify(root / "out-bf16", tmp_path / "hf")
    assert (found.equal, found.equal_by_value) == (len(tensors), len(tensors) - biases)
    said = dsv3("verify", root / "out-bf16", tmp_path / "hf", "--tolerance", "0.1")
    assert f"{len(tensors)} tensors are the same, within 0.1.\n" in said.out
    assert verify(root / "fp8", root / "kept-fp8").equal_by_value == 0


def test_files_of_a_folder_and_of_a_checkpoint_are_not_compared(root, dsv3):
    for pair in ((root / "fp8", root / "from-fp8"), (root / "from-fp8", root / "fp8")):
        said = dsv3("verify", *pair, "--bytes")
        assert (said.code, said.out) == (2, "")
        assert f"{root}/fp8 is a Hugging Face folder and {root}/from-fp8 a checkpoint" in said.err
        assert "leave --bytes out" in said.err


def test_inspect_counts_what_is_there(root):
    found = inspect(root / "fp8")
    quantised = sum(t.dtype == torch.float8_e4m3fn for t in random_tensors(MODEL, "fp8").values())
    assert found.complete
    assert found.dtypes["float8_e4m3fn"]["tensors"] == quantised
    assert found.values == sum(t.numel() for t in random_tensors(MODEL, "bf16").values())
    assert (found.layers, found.mtp) == ("3 (1 dense, 2 MoE)", "1 layer(s)")
    assert inspect(root / "from-fp8").complete
    assert inspect(root / "kept-fp8").complete
    kept, taken = inspect(root / "kept-fp8"), inspect(root / "from-fp8")
    assert kept.dtypes["float8_e4m3fn"]["bytes"] * 2 < taken.dtypes["bfloat16"]["bytes"]


def test_inspect_lists_what_does_not_fit(root, tmp_path, dsv3):
    tensors = random_tensors(MODEL, "bf16")
    tensors["model.extra"] = tensors.pop(BIAS)
    tensors[O_PROJ] = tensors[O_PROJ][:-1].clone()
    tensors = {n: t for n, t in tensors.items() if not n.startswith("model.layers.3.")}
    write_folder(tmp_path / "odd", MODEL, tensors)
    found = inspect(tmp_path / "odd")
    assert not found.complete
    assert found.foreign == ["model.extra"]
    assert BIAS in found.missing
    assert found.misshapen[0].startswith(O_PROJ)
    assert "MISSING" in found.mtp
    said = dsv3("inspect", tmp_path / "odd")
    assert said.code == 1
    assert "foreign (1):\n  model.extra" in said.out
    assert f"  {O_PROJ}: [135, 40] instead of [136, 40], by hidden_size\n" in said.out
    assert said.err == ""
    said = dsv3("inspect", tmp_path / "odd", "--json")
    assert (said.code, json.loads(said.out)["complete"]) == (1, False)


def test_inspect_says_where_without_mtp_helps(root, tmp_path, dsv3):
    tensors = random_tensors(MODEL, "bf16")
    write_folder(tmp_path / "hf", MODEL, {n: t for n, t in tensors.items() if "layers.3." not in n})
    said = dsv3("inspect", tmp_path / "hf")
    assert (said.code, said.err.count("dsv3 import --without-mtp takes the folder")) == (1, 1)
    assert import_hf(tmp_path / "hf", tmp_path / "t", without_mtp=True).tensors
    tensors.pop("model.layers.3.eh_proj.weight")  # which --without-mtp would not mend
    write_folder(tmp_path / "half", MODEL, tensors)
    assert inspect(tmp_path / "half").advice == []


def test_inspect_says_where_config_json_is_of_another_depth(tmp_path):
    write_folder(tmp_path / "hf", MODEL, random_tensors(MODEL, "bf16"))
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 4}))
    (said,) = inspect(tmp_path / "hf").advice
    assert said == (
        "these weights have 3 layers before that of multi-token prediction, and "
        "num_hidden_layers is 4: take config.json and weights of one model."
    )


def test_inspect_lists_all_files_that_are_broken(root, tmp_path, dsv3):
    """What they hold is not missing besides, and the rest is looked at."""
    tensors = random_tensors(MODEL, "bf16")
    write_folder(tmp_path / "hf", MODEL, tensors, shards=4)
    first, second, third, last = sorted((tmp_path / "hf").glob("*.safetensors"))
    second.unlink()
    os.truncate(third, third.stat().st_size - 1)
    held = [name for name, file in _index(tmp_path / "hf").items() if file == second.name]
    said = dsv3("inspect", tmp_path / "hf", "--json")
    found = json.loads(said.out)
    assert (said.code, found["complete"], found["missing"]) == (1, False, [])
    assert found["broken_files"] == [second.name, third.name]
    assert found["damaged"][0] == (
        f"{second} is missing; model.safetensors.index.json says it holds {held[0]} and "
        f"{len(held) - 1} more: download it again."
    )
    assert found["damaged"][1].startswith(f"{third} is cut short, ")
    assert found["tensors"] == len(tensors) - len(held) - len(held)
    assert "MISSING" not in found["mtp"]
    said = dsv3("inspect", tmp_path / "hf")
    assert (said.code, said.err) == (1, "")
    assert f"damaged (2):\n  {second} is missing" in said.out
    for file in (first, last):
        file.unlink()
    assert len(inspect(tmp_path / "hf").broken_files) == 4


def test_inspect_lists_all_files_of_a_checkpoint_that_are_broken(root, tmp_path, dsv3):
    shutil.copytree(root / "from-fp32", tmp_path / "t")
    first, second, *_ = sorted((tmp_path / "t" / "release").glob("*.distcp"))
    os.truncate(first, 1000)
    second.unlink()
    said = dsv3("inspect", tmp_path / "t", "--json")
    found = json.loads(said.out)
    assert (said.code, {*found["broken_files"]}) == (1, {first.name, second.name})
    cut, gone = sorted(found["damaged"])
    assert cut.startswith(f"{first} is cut short, ")
    assert gone.startswith(f"{second} is missing, which holds ")
    assert gone.endswith("saved, or take another checkpoint.")


def _index(folder):
    return json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]


def test_inspect_knows_shipped_models_and_unfinished_targets(root, tmp_path):
    from dsv3_plugin.recipe.load import load_model

    tiny = load_model("tiny")
    write_folder(tmp_path / "my-tiny", tiny, random_tensors(tiny, "bf16"))
    assert inspect(tmp_path / "my-tiny").model == "tiny"
    (tmp_path / "my-tiny" / "INCOMPLETE").write_text("{}")
    assert not inspect(tmp_path / "my-tiny").complete


@pytest.mark.parametrize("direction", ["import", "export"])
def test_inspect_says_how_far_an_unfinished_conversion_came(
    root, tmp_path, monkeypatch, direction, dsv3
):
    convert, reads = {
        "import": (import_hf, root / "fp8"), "export": (export_hf, root / "from-fp8"),
    }[direction]  # fmt: skip
    monkeypatch.setattr(journal, "_COMMIT_BYTES", 0)
    written = []

    def stop(done, total):
        written.append(done)
        if len(written) == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(reads, tmp_path / "t", progress=stop, workers=1)
    found = inspect(tmp_path / "t")
    assert found.kind.startswith({"import": "Megatron", "export": "Hugging"}[direction])
    # The one that was in hand, and MTP copies that an import only compares, are not counted; those
    # that were done while it was told of the one in hand are.
    assert found.written >= 20
    told = found.to_mapping()
    assert (told["written"], told["unfinished"], told["complete"]) == (found.written, True, False)
    assert {told[key] for key in ("model", "layers", "tensors", "bytes", "missing")} == {None}
    assert not found.complete
    said = dsv3("inspect", tmp_path / "t").out
    assert f"UNFINISHED: {found.written} tensors" in said
    assert "neither" not in said
    if direction == "import":
        assert inspect(tmp_path / "t" / "release").written == found.written
    (tmp_path / "t" / "INCOMPLETE").write_bytes(b"no journal\n")
    assert "INCOMPLETE is damaged" in inspect(tmp_path / "t").damaged[0]


def test_inspect_says_what_is_wrong_with_a_model_file(root, tmp_path, dsv3):
    shutil.copytree(root / "from-fp32", tmp_path / "t")
    for content in (b"hidden_size: [", b"hidden_size: many\n", b"\xff\xfe\x00"):
        (tmp_path / "t" / "model.yaml").write_bytes(content)
        found = inspect(tmp_path / "t")
        assert not found.missing
        assert "model.yaml" in found.damaged[0]
        assert not found.complete
        assert "damaged (1):" in dsv3("inspect", tmp_path / "t").out
    (tmp_path / "t" / "model.yaml").unlink()
    assert inspect(tmp_path / "t").missing == ["model.yaml"]


def test_inspect_imports_no_torch(root):
    import subprocess

    code = (
        "import sys; from dsv3_plugin.checkpoint.inspect import inspect; "
        f"inspect({str(root / 'fp8')!r}); inspect({str(root / 'from-fp8')!r}); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=_environment()).returncode == 0


def _environment():
    from pathlib import Path

    return os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])}
