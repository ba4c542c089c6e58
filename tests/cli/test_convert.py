"""What `dsv3 import` and `dsv3 verify` say, as typed."""

import json
import math
import re
import shlex
import signal
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file

from dsv3_plugin.checkpoint.conversion.stream import TargetFolder
from dsv3_plugin.checkpoint.names import layout
from dsv3_plugin.cli.command import app
from dsv3_plugin.data.tokenizer import SMALLEST_VOCABULARY, train_bpe
from dsv3_plugin.distributed import world
from dsv3_plugin.numbers import bytes_text
from tests.checkpoint.samples import random_tensors, small_model, write_folder

MODEL = small_model()


@pytest.mark.parametrize(("form", "said"), [("bf16", True), ("fp8", False)])
def test_keep_fp8_without_fp8_says_that_it_changed_nothing(tmp_path, form, said, dsv3):
    write_folder(tmp_path / form, MODEL, random_tensors(MODEL, form))
    done = dsv3("import", tmp_path / form, tmp_path / "checkpoint", "--dtype", "keep-fp8")
    assert done.code == 0
    assert "imported" in done.out
    note = f"Note: {tmp_path / form} has no FP8 weights, so --dtype keep-fp8 changed nothing."
    ahead, without, *notes = done.err.splitlines()
    assert ahead.startswith("import: ")
    assert without.startswith(f"Note: {tmp_path / form} has no tokenizer")
    assert notes == ([note] if said else [])


def test_scales_of_fp8_without_fp8_change_nothing(tmp_path, dsv3):
    write_folder(tmp_path / "hf", MODEL, random_tensors(MODEL, "bf16"))
    assert dsv3("import", tmp_path / "hf", tmp_path / "checkpoint").code == 0
    done = dsv3("export", tmp_path / "checkpoint", tmp_path / "out", "--fp8-rule", "deepgemm")
    said = "dsv3: --fp8-rule deepgemm is of weights that --fp8 writes: add --fp8, or leave it out."
    assert (done.code, done.err.strip()) == (2, said)
    assert not (tmp_path / "out").exists()
    done = dsv3("serve", "--hf", tmp_path / "checkpoint")
    said = f"dsv3: {tmp_path}/checkpoint is a checkpoint: name it with --checkpoint.\n"
    assert (done.code, done.err) == (2, said)
    done = dsv3("serve", "--checkpoint", tmp_path / "hf")
    said = f"dsv3: {tmp_path}/hf is a Hugging Face folder: name it with --hf.\n"
    assert (done.code, done.err) == (2, said)
    done = dsv3("serve", "--checkpoint", tmp_path / "hf", "--hf", tmp_path / "hf")
    assert done.err.startswith("dsv3: Both --checkpoint and --hf are given, and one model")


def test_what_is_interrupted_says_how_it_goes_on(tmp_path, dsv3, monkeypatch):
    write_folder(tmp_path / "hf", MODEL, random_tensors(MODEL, "bf16"))

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(TargetFolder, "write", interrupted)
    done = dsv3("import", tmp_path / "hf", tmp_path / "checkpoint")
    assert "checkpoint is unfinished: the same dsv3 import with --resume goes on" in done.err
    monkeypatch.undo()
    done = dsv3("import", tmp_path / "hf", tmp_path / "checkpoint", "--resume")
    assert done.code == 0
    said = f"import: nothing was kept from before in {tmp_path}/checkpoint, so all is done again."
    assert said in done.err


def test_sigterm_is_an_interruption(tmp_path, dsv3, monkeypatch):
    write_folder(tmp_path / "hf", MODEL, random_tensors(MODEL, "bf16"))
    monkeypatch.setattr(TargetFolder, "write", lambda *_: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    done = dsv3("import", tmp_path / "hf", tmp_path / "checkpoint")
    assert done.code == 143
    assert "checkpoint is unfinished: the same dsv3 import with --resume goes on" in done.err
    assert signal.getsignal(signal.SIGTERM) == before


def stop_after(jobs, monkeypatch):
    """Conversions are interrupted once they have written the tensors of so many jobs."""
    run, left = TargetFolder._run, iter(range(jobs))

    def stops(self, job, failed):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return run(self, job, failed)

    monkeypatch.setattr(TargetFolder, "_run", stops)


def test_what_goes_on_says_what_it_kept_and_what_is_left(tmp_path, dsv3, monkeypatch):
    tensors = random_tensors(MODEL, "bf16")
    write_folder(tmp_path / "hf", MODEL, tensors)
    target, out = tmp_path / "a folder", tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_after(5, patch)
        dsv3("import", tmp_path / "hf", target, "--workers=1", "--dtype=fp32")
    command = f"dsv3 import {tmp_path}/hf '{target}' --dtype fp32 --resume"
    found = dsv3("inspect", target)
    assert f"Note: what was begun is gone on with by: {command}\n" in found.err
    assert "UNFINISHED: 5 tensors" in found.out
    assert f"(dsv3 inspect '{target}' says the command)" in dsv3("export", target, out).err
    done = dsv3(*shlex.split(command)[1:])
    kept = re.fullmatch(
        rf"import: 5 tensors, (.*), kept from before in {target}: each is read back, and made "
        "again if it is not what was written.",
        done.err.splitlines()[0],
    )
    assert f"into {target} (5 tensors, {kept[1]}, kept from before): " in done.out

    export = ("export", target, out, "--workers=1", "--shard-size=1MB", "--json")
    with monkeypatch.context() as patch:
        stop_after(7, patch)
        dsv3(*export)
    other = dsv3("export", target, out, "--resume")
    assert f"{out} was begun with --shard-size 1MB, not with --shard-size 5GB: " in other.err
    report = json.loads(dsv3(*export, "--resume").out)
    first = [entry.name for entry in layout(MODEL)][:7]
    size = sum(tensors[name].nbytes * 2 for name in first)
    assert (report["kept"]["tensors"], report["kept"]["bytes"]) == (7, size)
    assert report["notes"] == [
        f"the checkpoint has no tokenizer, so {out} has none; put the model's own tokenizer files "
        "there before text goes in."
    ]


def test_what_follows_of_a_folder_without_a_tokenizer(tmp_path, dsv3, monkeypatch):
    """It is said, and text is refused before a model is loaded, or imported to be served."""
    folder, checkpoint = tmp_path / "hf", tmp_path / "checkpoint"
    write_folder(folder, MODEL, random_tensors(MODEL, "bf16"))
    (folder / "generation_config.json").write_text("{}")
    done = dsv3("import", folder, checkpoint)
    assert done.err.splitlines()[1] == (
        f"Note: {folder} has no tokenizer, so {checkpoint} has none: put the model's own tokenizer "
        f"files into {checkpoint}/tokenizer before text goes in (dsv3 generate, serve, eval)."
    )
    monkeypatch.setattr(world, "single_process", None)
    for words in (("generate", "--prompt", "a", "--checkpoint"), ("serve", "--checkpoint")):
        for place in (checkpoint, checkpoint / "release"):
            done = dsv3(*words, place)
            assert (done.code, done.err) == (
                2,
                f"dsv3: {checkpoint} has no tokenizer, by which text becomes tokens: put the "
                "model's own tokenizer files (tokenizer.json, tokenizer_config.json) into "
                f"{checkpoint}/tokenizer.\n",
            )
    done = dsv3("serve", "--hf", folder)
    assert (done.code, f"dsv3: {folder} has no tokenizer, by which" in done.err) == (2, True)

    monkeypatch.chdir(tmp_path)
    done = dsv3("args", "checkpoint")
    assert f"--load {checkpoint} \\\n" in done.out
    assert "--tokenizer-type NullTokenizer \\\n" in done.out
    assert f"dsv3: {checkpoint} has no tokenizer, so the command counts ids alone" in done.err
    train_bpe(["def f(x):\n    return x\n"] * 3, SMALLEST_VOCABULARY, checkpoint / "tokenizer")
    done = dsv3("args", "checkpoint")
    assert f"--tokenizer-model {checkpoint}/tokenizer \\\n" in done.out
    assert "no tokenizer" not in done.err


def test_verify_lists_twenty_differences_or_all(tmp_path, dsv3):
    for name in ("one", "other"):
        write_folder(tmp_path / name, MODEL, random_tensors(MODEL, "bf16"), shards=1)
    file = tmp_path / "other" / "model-00001-of-00001.safetensors"
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(file).items()}, file)

    done = dsv3("verify", tmp_path / "one", tmp_path / "other")
    assert done.code == 1
    number = int(next(line for line in done.out.splitlines() if "differ:" in line).split()[0])
    assert number > 20
    assert done.out.count("values differ") == 20
    assert done.out.endswith(f"  … and {number - 20} more: --all lists them\n")
    done = dsv3("verify", tmp_path / "one", tmp_path / "other", "--all")
    assert done.out.count("values differ") == number


def test_what_lies_ahead_and_what_was_counted_is_said(tmp_path, dsv3):
    """The numbers are those of the tensors that safetensors and the samples know of."""
    tensors = random_tensors(MODEL, "fp8")
    scales = [name for name in tensors if name.endswith("_scale_inv")]
    copies = [entry.name for entry in layout(MODEL) if entry.copy_of]
    folder, there, kept = tmp_path / "hf", len(tensors), len(tensors) - len(copies)
    write_folder(folder, MODEL, tensors)

    done = dsv3("import", folder, tmp_path / "t")
    assert (
        f"imported {kept} of {there} tensors ({len(copies)} copies of others compared and not "
        f"kept; with {len(scales)} scales of FP8 weights) into {tmp_path}/t: "
    ) in done.out
    read = sum(tensor.nbytes for tensor in tensors.values())
    line = (
        rf"import: {bytes_text(read)} to read, .* to write into {tmp_path}/t "
        r"\(\d files? of tensors\), .* free there; 0s "
    )
    assert re.match(line, done.err)

    done = dsv3("export", tmp_path / "t", tmp_path / "out", "--fp8")
    said = f"exported {there} tensors ({len(copies)} copies and {len(scales)} scales of FP8 weights"
    assert said in done.out
    weights = there - len(scales)
    done = dsv3("verify", folder, tmp_path / "out")
    assert done.err.startswith(f"verify: {bytes_text(2 * read)} to read; 0s at 1.0 GB/s.\n")
    assert f"{weights} tensors are the same, bit for bit." in done.out
    assert f"Not counted by themselves: {len(scales)} scales." in done.out
    done = dsv3("verify", tmp_path / "t")
    assert f"{kept} tensors are as" in done.out
    listed = json.loads((tmp_path / "t" / "manifest.json").read_text())["tensors"]
    written = sum(math.prod(t["shape"]) * getattr(torch, t["dtype"]).itemsize for t in listed)
    assert done.err.startswith(f"verify: {bytes_text(written)} to read; 0s at ")
    out = tmp_path / "out"
    done = dsv3("verify", folder, out, "--bytes")
    sizes = [{file.name: file.stat().st_size for file in at.iterdir()} for at in (folder, out)]
    alike = sum(size for _, size in sizes[0].items() & sizes[1].items())
    assert done.err.startswith(f"verify: {bytes_text(2 * alike)} to read; 0s at ")


def test_what_was_done_as_json(tmp_path, dsv3):
    write_folder(tmp_path / "hf", MODEL, random_tensors(MODEL, "bf16"))
    done = dsv3("import", tmp_path / "hf", tmp_path / "checkpoint", "--json")
    said = json.loads(done.out)
    assert said["folder"] == str(tmp_path / "checkpoint")
    assert said["tensors"] > 0
    assert not said["was_complete"]
    exported = json.loads(dsv3("export", tmp_path / "checkpoint", tmp_path / "back", "--json").out)
    done = dsv3("verify", tmp_path / "back", "--tolerance", 0.1, "--without-mtp")
    assert (done.code, done.err) == (
        2,
        f"dsv3: --tolerance and --without-mtp are for comparing two, and {tmp_path / 'back'} alone "
        "is held against the bytes in its own manifest: name a second, or leave them out.\n",
    )
    same = json.loads(dsv3("verify", tmp_path / "hf", tmp_path / "back", "--json").out)
    assert same == {
        "equal": exported["tensors"], "differences": [], "absent_copies": [], "scales": 0,
        "equal_by_value": 0, "notes": [],
    }  # fmt: skip


def test_the_page_on_conversion_names_every_option_and_no_other():
    page = (Path(__file__).parents[2] / "docs" / "conversion.md").read_text()
    page = re.sub(r"^## In a plain Megatron-LM\n.*?^(?=## )", "", page, flags=re.M | re.S)
    page = re.sub(r"`hf download [^`]*`", "", page)  # another program's
    verbs = typer.main.get_command(app).commands
    known = {
        option
        for verb in ("import", "export", "verify", "inspect")
        for parameter in verbs[verb].params
        for option in parameter.opts
        if option.startswith("--")
    }
    assert {*re.findall(r"--[a-z][a-z0-9-]*", page)} == known


def test_without_mtp_where_there_is_none_changes_nothing(tmp_path, dsv3):
    model = small_model(mtp_num_layers=None)
    folder, checkpoint = tmp_path / "hf", tmp_path / "t"
    write_folder(folder, model, random_tensors(model, "bf16"))
    done = dsv3("import", folder, checkpoint, "--without-mtp")
    what = "multi-token prediction, so --without-mtp changed nothing: leave it out."
    assert f"Note: {folder} promises no {what}\n" in done.err
    same = dsv3("verify", folder, checkpoint, "--without-mtp")
    assert f"Note: neither {folder} nor {checkpoint} promises {what}\n" in same.err


def test_a_file_of_a_checkpoint_is_told_the_folder_it_lies_in(tmp_path, dsv3):
    write_folder(tmp_path / "hf", MODEL, random_tensors(MODEL, "bf16"))
    checkpoint = tmp_path / "t"
    dsv3("import", tmp_path / "hf", checkpoint)
    for file in (checkpoint / "manifest.json", checkpoint / "release" / ".metadata"):
        for verb in ("inspect", "verify", "export", "generate --prompt a --checkpoint",
                     "serve --checkpoint", "eval loss --checkpoint"):  # fmt: skip
            more = (tmp_path / "out",) if verb == "export" else ()
            done = dsv3(*verb.split(), file, *more)
            said = f"dsv3: {file} is a file, and no folder: name {file.parent}.\n"
            assert (done.code, done.err) == (2, said)
        done = dsv3("args", file)
        said = f"dsv3: {file} is a file of a checkpoint, and no recipe: name the folder "
        assert (done.code, done.err) == (2, f"{said}{file.parent}.\n")
    assert "name the folder" in dsv3("args", checkpoint / "model.yaml").err


def test_args_of_what_is_no_checkpoint_says_where_one_is(tmp_path, dsv3, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in (10, 20):
        (tmp_path / "checkpoints" / f"iter_00000{number}").mkdir(parents=True)
    done = dsv3("args", "checkpoints/iter_0000007")
    assert (done.code, done.err) == (
        2,
        "dsv3: checkpoints/iter_0000007 does not exist: in checkpoints there are iter_0000020, "
        "iter_0000010.\n",
    )
    done = dsv3("args", "deepseek-ai/DeepSeek-V3")
    assert "hf download deepseek-ai/DeepSeek-V3 --local-dir FOLDER makes" in done.err
    assert "a checkpoint's folder would do as well" in dsv3("args", "pretrian/tiny").err
