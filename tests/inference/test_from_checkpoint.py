"""`dsv3 logits` and `dsv3 generate`, from a Hugging Face folder by way of `dsv3 import`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_layers import MtpModel
from transformers.modeling_utils import PreTrainedModel

from dsv3_plugin.checkpoint import import_hf
from dsv3_plugin.checkpoint.load import load_for_inference
from dsv3_plugin.checkpoint.names import layout
from dsv3_plugin.data.tokenizer import SMALLEST_VOCABULARY, train_bpe
from dsv3_plugin.errors import UserError
from dsv3_plugin.inference import from_checkpoint
from dsv3_plugin.inference.engine import Engine
from dsv3_plugin.inference.from_checkpoint import continue_texts, write_logits
from dsv3_plugin.inference.generate import generate
from dsv3_plugin.inference.requests import SamplingParameters
from dsv3_plugin.recipe.hf_config import hf_config
from tests import oracles
from tests.forked_programs import ForkedProcess

MODEL = oracles.model_config(vocab_size=SMALLEST_VOCABULARY + 8, mtp_num_layers=1)


def write_hf_folder(folder: Path) -> None:
    """A Hugging Face folder of random FP32 weights, MTP layer and tokenizer included."""
    draw = torch.Generator().manual_seed(0)
    tensors = {}
    for entry in layout(MODEL):
        noise = torch.randn(entry.shape, generator=draw)
        if entry.copy_of:
            tensors[entry.name] = tensors[entry.copy_of].clone()
        elif "norm" in entry.name:
            tensors[entry.name] = 1 + 0.3 * noise
        else:
            tensors[entry.name] = noise / max(1.0, entry.shape[-1] ** 0.5)
    train_bpe(["def f(x):\n    return x\n"] * 3, MODEL.vocab_size, folder)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = hf_config(MODEL, torch_dtype="float32", eos_token_id=1)
    (folder / "config.json").write_text(json.dumps(config))


def mtp_layers(hf: Path, main: PreTrainedModel) -> MtpModel:
    """transformers' MTP layers; its own loader looks for layer 61, whatever the model's depth."""
    main.config.num_mtp_layers = 1
    layers = MtpModel(main, 1).eval()
    outside = ("enorm", "hnorm", "eh_proj")
    state, experts = {}, {}
    for name, tensor in load_file(hf / "model.safetensors").items():
        if not name.startswith(f"model.layers.{MODEL.num_layers}."):
            continue
        rest = name.split(".", 3)[3]
        if rest.startswith(outside):
            state[f"layers.0.{rest}"] = tensor
        elif rest == "shared_head.norm.weight":
            state["layers.0.post_norm.weight"] = tensor
        elif rest.startswith("mlp.experts."):
            _, _, expert, projection, _ = rest.split(".")
            experts[int(expert), projection] = tensor
        elif not rest.startswith(("embed_tokens", "shared_head")):
            state[f"layers.0.mtp_block.{rest}"] = tensor
    count = range(MODEL.num_moe_experts)
    block = "layers.0.mtp_block.mlp.experts"
    state[f"{block}.gate_up_proj"] = torch.stack(
        [torch.cat([experts[e, "gate_proj"], experts[e, "up_proj"]]) for e in count]
    )
    state[f"{block}.down_proj"] = torch.stack([experts[e, "down_proj"] for e in count])
    missing, unexpected = layers.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.startswith(("embed_tokens", "shared_head")) for name in missing), missing
    return layers


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def executed(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`dsv3` as a user calls it: for each verb once."""
    command = [sys.executable, "-m", "dsv3_plugin.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)


def dsv3(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The same, forked from where all is imported."""
    command = ForkedProcess([*map(str, arguments)], ENVIRONMENT, apart=True)
    out, err = command.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, command.returncode, out, err)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The Hugging Face folder and the checkpoint imported from it."""
    root = tmp_path_factory.mktemp("verbs")
    write_hf_folder(root / "hf")
    import_hf(root / "hf", root / "checkpoint")
    return root / "hf", root / "checkpoint"


@pytest.mark.parametrize("mtp", [False, True])
def test_logits_equal_transformers(folders, tmp_path, mtp):
    hf, checkpoint = folders
    tokens = np.random.default_rng(0).integers(MODEL.vocab_size, size=(2, 30))
    np.save(tmp_path / "tokens.npy", tokens)
    verb = dsv3 if mtp else executed
    done = verb("logits", "--checkpoint", checkpoint, "--tokens", tmp_path / "tokens.npy",
                "--out", tmp_path / "out.npy", *(["--mtp"] if mtp else []))  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours = np.load(tmp_path / "out.npy")
    said = f"wrote the logits, float32 {[*ours.shape]}, into {tmp_path / 'out.npy'}.\n"
    assert (done.stdout, done.stderr) == (said, "")

    theirs = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32)
    ids = torch.from_numpy(tokens)
    if mtp:
        layers = mtp_layers(hf, theirs)
        with torch.no_grad():
            expected = oracles.mtp_logits(theirs, layers, ids)
        assert ours.shape == (2, 30, 1, MODEL.vocab_size)
    else:
        expected = oracles.logits(theirs, ids)
    assert ours.dtype == np.float32
    assert float((torch.from_numpy(ours) - expected).abs().max()) <= 1e-5


CELL = """
import sys
import warnings

import torch

from dsv3_plugin.upstream import cpu_host

cpu_host.enable()

import dsv3_plugin
from dsv3_plugin.checkpoint.load import load_for_inference
from dsv3_plugin.distributed.world import single_process
from dsv3_plugin.inference.logits import main_logits

dsv3_plugin.register()
with single_process():
    model, _ = load_for_inference(sys.argv[4])
    main_logits(model, torch.arange(8)[None])
for sentence in ("Apex is not installed", "The argument order of load has been changed"):
    warnings.warn(f"{sentence}, says the cell", stacklevel=1)
del sys.argv[0]

from dsv3_plugin.cli import main

main()
"""
"""Python as a person types it, and a verb behind it."""


def test_generate_continues_the_prompt_and_no_library_warns(folders):
    """Nor in a cell of Python before, whose own warnings are shown."""
    _, checkpoint = folders
    words = ["dsv3", "generate", "--checkpoint", checkpoint, "--prompt", "def f(x",
             "--max-new-tokens", 5]  # fmt: skip
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONWARNINGS"}
    done = subprocess.run(
        [sys.executable, "-c", CELL, *map(str, words)],
        capture_output=True, text=True, timeout=300, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("def f(x")
    assert len(done.stdout.rstrip("\n")) > len("def f(x")
    lines = [line for line in done.stderr.splitlines() if not line.startswith("  ")]
    assert [line.partition(" UserWarning: ")[2] for line in lines] == [
        "Apex is not installed, says the cell",
        "The argument order of load has been changed, says the cell",
    ], done.stderr


def test_generate_takes_an_iterations_folder_as_logits_and_export_do(folders):
    _, checkpoint = folders
    (iteration,) = checkpoint.glob("release")
    done = dsv3("generate", "--checkpoint", iteration, "--prompt", "def f(x",
                "--max-new-tokens", 2)  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_several_prompts_are_shown_one_after_another_and_guessing_changes_nothing(folders):
    _, checkpoint = folders
    prompts = ["def f(x", "return", "x\n"]
    sampling = SamplingParameters(max_tokens=12, temperature=0.0)
    alone = ["".join(continue_texts(checkpoint, [prompt], sampling)) for prompt in prompts]
    assert all(text.startswith(prompt) for text, prompt in zip(alone, prompts, strict=True))
    together = "".join(continue_texts(checkpoint, prompts, sampling, drafts=2))
    assert together == "\n\n".join(alone)


def test_prompts_of_one_seed_are_drawn_by_their_places(folders):
    """One that is given twice is continued in two ways, the first as if it were alone."""
    _, checkpoint = folders
    sampling = SamplingParameters(max_tokens=12, temperature=1.0, n=2, seed=3)
    (alone,) = ["".join(continue_texts(checkpoint, ["return"], sampling))]
    together = "".join(continue_texts(checkpoint, ["return"] * 2, sampling, drafts=2))
    assert together.startswith(alone + "\n\n")
    assert together != f"{alone}\n\n{alone}"


def test_a_chat_asks_as_transformers_template_does(folders):
    """The answers alone are shown."""
    _, checkpoint = folders
    tokenizer = AutoTokenizer.from_pretrained(checkpoint / "tokenizer")
    model, _ = load_for_inference(checkpoint)
    questions, answers = ["def f(x", "return"], []
    for question in questions:
        turns = [{"role": "user", "content": question}]
        asked = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        ends = frozenset({tokenizer.eos_token_id})
        answer = list(generate(model, asked, max_new_tokens=9, stop=ends))
        answers.append(tokenizer.decode(answer))
    sampling = SamplingParameters(max_tokens=9, temperature=0.0)
    shown = "".join(continue_texts(checkpoint, questions, sampling, chat=True))
    assert shown == "\n\n".join(answers)
    done = dsv3("generate", "--checkpoint", checkpoint, "--prompt", questions[0],
                "--max-new-tokens", 9, "--chat")  # fmt: skip
    assert done.stdout.rstrip("\n") == answers[0].rstrip("\n"), done.stderr


def test_text_is_shown_while_it_is_made(folders, monkeypatch):
    _, checkpoint = folders
    made, step = [], Engine.step

    def counted(engine):
        made.append(engine)
        return step(engine)

    monkeypatch.setattr(Engine, "step", counted)
    sampling = SamplingParameters(max_tokens=30, temperature=0.0)
    seen = [len(made) for _ in continue_texts(checkpoint, ["def f(x"], sampling)]
    assert seen[0] == 1
    assert len(set(seen)) > 5


def test_guessing_without_predictors_is_refused(tmp_path, folders, monkeypatch):
    hf, _ = folders
    plain = shutil.copytree(hf, tmp_path / "hf")
    config = json.loads((plain / "config.json").read_text()) | {"num_nextn_predict_layers": 0}
    (plain / "config.json").write_text(json.dumps(config))
    main = {
        name: tensor
        for name, tensor in load_file(plain / "model.safetensors").items()
        if f"layers.{MODEL.num_layers}." not in name
    }
    save_file(main, plain / "model.safetensors", {"format": "pt"})
    import_hf(plain, tmp_path / "checkpoint")
    monkeypatch.setattr(from_checkpoint, "load_for_inference", None)
    with pytest.raises(UserError, match="no multi-token prediction layers; leave --drafts out"):
        next(continue_texts(tmp_path / "checkpoint", ["x"], SamplingParameters(), drafts=1))


def test_weights_of_multi_token_prediction_that_are_missing_are_refused(tmp_path, folders):
    """They would guess nothing right, and nobody would know why."""
    hf, _ = folders
    half = shutil.copytree(hf, tmp_path / "hf")
    main = {
        name: tensor
        for name, tensor in load_file(half / "model.safetensors").items()
        if not name.startswith(f"model.layers.{MODEL.num_layers}.eh_proj")
    }
    save_file(main, half / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="eh_proj"):
        import_hf(half, tmp_path / "checkpoint")


def test_a_request_that_is_too_long_prints_nothing(folders):
    _, checkpoint = folders
    done = dsv3("generate", "--checkpoint", checkpoint, "--prompt", "def f(x",
                "--max-new-tokens", 10**6)  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert "exceed the model's" in done.stderr


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        (".", "is a folder: name a file"),
        ("no/x.npy", "there is no folder"),
        ("x.txt", "--out writes .npy files; .*x.txt does not end so"),
        ("tokens.npy", "tokens.npy is the file of --tokens, and --out would write over it"),
        ("link.npy", "link.npy is the file of --tokens"),
    ],
)
def test_a_place_that_does_not_do_is_refused_before_the_model_is_loaded(tmp_path, out, sentence):
    (tmp_path / "tokens.npy").touch()
    os.link(tmp_path / "tokens.npy", tmp_path / "link.npy")
    with pytest.raises(UserError, match=sentence):
        write_logits(tmp_path / "no checkpoint", tmp_path / "tokens.npy", tmp_path / out)


def test_tokens_that_do_not_do_are_refused_before_the_model_is_loaded(
    folders, tmp_path, monkeypatch
):
    _, checkpoint = folders
    monkeypatch.setattr(from_checkpoint, "load_for_inference", None)
    with pytest.raises(UserError, match=r"none.npy does not exist"):
        write_logits(checkpoint, tmp_path / "none.npy", tmp_path / "out.npy")


def test_an_export_without_a_tokenizer_says_so(folders, tmp_path):
    _, checkpoint = folders
    bare = shutil.copytree(checkpoint, tmp_path / "bare")
    shutil.rmtree(bare / "tokenizer")
    for verb, source, notes in ((executed, checkpoint, 0), (dsv3, bare, 1)):
        done = verb("export", source, tmp_path / f"hf{notes}")
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("has no tokenizer") == notes


def test_bad_input_is_one_sentence(folders, tmp_path):
    _, checkpoint = folders
    np.save(tmp_path / "tokens.npy", np.zeros((1, 4), np.int32))
    out = tmp_path / "out.npy"
    for arguments in (
        ("logits", "--checkpoint", tmp_path / "none", "--tokens", "t.npy", "--out", out),
        ("logits", "--checkpoint", checkpoint, "--tokens", tmp_path / "tokens.npy", "--out", out),
    ):
        done = dsv3(*arguments)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("dsv3: ")
    assert not out.exists()
