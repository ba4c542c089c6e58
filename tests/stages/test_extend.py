"""A pretrained model goes on with longer sequences, from whatever keeps its weights."""

import inspect
import json
import string
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from dsv3_plugin.data.index_file import map_sequences
from dsv3_plugin.distributed.world import single_process
from dsv3_plugin.evaluation.checkpoint import Evaluated, Place
from dsv3_plugin.evaluation.from_checkpoint import losses_of
from dsv3_plugin.evaluation.loss import losses_on
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.machine import Machine
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.training.prepare import prepare
from dsv3_plugin.training.run import Run
from tests.small_runs import LONGER, MODEL, Command, evaluated_samples, records
from tests.stages import tuning


@pytest.fixture(scope="module")
def longer(recipe, trained):
    """The recipe that stretches the small one, beside it, with what else is evaluated on."""
    path = recipe.with_name("longer.yaml")
    sets = {}
    for module in (string, textwrap):
        sets[module.__name__] = str(recipe.with_name(f"{module.__name__}.txt"))
        Path(sets[module.__name__]).write_text(inspect.getsource(module))
    data = LONGER["data"] | {"held_out_sets": sets}
    path.write_text(yaml.safe_dump(LONGER | {"from": str(trained.folder), "data": data}))
    return path


@pytest.fixture(scope="module")
def extended(longer, tmp_path_factory):
    """That recipe, trained from the small run."""
    folder = tmp_path_factory.mktemp("extended") / "run"
    ended = Command.forked("train", longer, f"directory={folder}").end()
    assert ended.code == 0, ended.output
    return folder


def first_loss(folder: Path) -> float:
    return next(line["validation_loss"] for line in records(folder) if line["iteration"] == 0)


def test_it_begins_with_the_parents_newest_checkpoint(extended, trained):
    (link,) = (extended / "parent").glob("iter_*")
    assert link.resolve() == (trained.checkpoints / "iter_0000012").resolve()
    steps = [line["iteration"] for line in records(extended) if "loss" in line]
    assert steps == [1]
    # Far below what weights know that have not been trained, though positions mean another angle.
    untrained = next(line["validation_loss"] for line in records(trained.folder))
    assert first_loss(extended) < untrained - 0.5


def test_the_first_held_out_loss_is_that_of_the_parent_at_these_positions(extended, trained, dsv3):
    samples = evaluated_samples(extended / "data", 256, range(2 * 2))  # eval_steps of the batch
    changes = [f"model.{key}={value}" for key, value in LONGER["model"].items()]
    with single_process():
        parent = Evaluated.load(Place.named(trained.folder), changes)
        theirs = losses_on("samples", samples, losses_of(parent, "samples"))
    assert first_loss(extended) == pytest.approx(theirs.loss, abs=1e-6)


def test_every_held_out_set_is_evaluated_by_itself(extended, dsv3):
    found = {
        line["held_out_set"]: line["validation_loss"]
        for line in records(extended)
        if line["iteration"] == 1 and "held_out_set" in line
    }
    expected = {}
    with single_process():
        losses = losses_of(Evaluated.load(Place.named(extended)), "samples")
        for name in ("string", "textwrap"):
            second = range(2 * 2, 2 * 2 * 2)  # of the evaluation behind the only step
            samples = evaluated_samples(
                extended / "data", 256, second, part=f"held_out_sets/{name}/train"
            )
            expected[name] = losses_on(name, samples, losses).loss
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_second_phase_begins_where_the_first_ended(longer, extended, tmp_path, dsv3):
    """The same YaRN, longer sequences, and the weights of the extended run."""
    second = [f"from={extended}", "data.seq_length=320"]
    run = tmp_path / "run"
    ended = Command.forked("train", longer, *second, f"directory={run}").end()
    assert ended.code == 0, ended.output
    (link,) = (run / "parent").glob("iter_*")
    assert link.resolve() == (extended / "checkpoints" / "iter_0000001").resolve()
    # Its own step 1 is saved, though what it began with was a step 1 too.
    assert (run / "checkpoints" / "latest_checkpointed_iteration.txt").read_text() == "1"
    assert "Done: step 1 " in ended.output
    samples = evaluated_samples(run / "data", 320, range(2 * 2))
    with single_process():
        theirs = losses_on("", samples, losses_of(Evaluated.load(Place.named(extended)), ""))
    assert first_loss(run) == pytest.approx(theirs.loss, abs=1e-6)

    plain = dsv3("train", longer, *second, f"directory={tmp_path}/plain", "model.rope_type=rope")
    assert plain.code == 2
    assert "positions stretched by YaRN (rotary_scaling_factor 5)" in plain.err
    assert not (tmp_path / "plain").exists()


def test_a_fine_tuning_begins_with_the_weights_of_the_extended_run(
    recipe, extended, tmp_path, dsv3
):
    path = tuning.written(recipe.parent, extended, model=LONGER["model"])
    ended = Command.forked(
        "train", path, f"directory={tmp_path}/run", "training.epochs=null", "training.steps=1",
        "curves.learning_rate=1e-4",
    ).end()  # fmt: skip
    assert ended.code == 0, ended.output
    with single_process():
        theirs = tuning.loss_of(extended, tmp_path / "run" / "data", tuning.seed_of(path))
    assert first_loss(tmp_path / "run") == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize(
    ("begins", "overrides"),
    [
        ("run", ["parallel.pipeline=2", "parallel.expert=1", "pipeline.schedule=1f1b"]),
        ("run", ["parallel.context=2", "parallel.expert=1"]),
        ("hugging face", []),
    ],
)
def test_the_first_held_out_loss_is_the_parents(
    longer, extended, trained, exported, tmp_path, begins, overrides
):
    """Weights, and nothing but weights, from every form and under every layout."""
    source = exported if begins == "hugging face" else trained.folder
    ended = Command.forked(
        "train", longer, f"from={source}", f"directory={tmp_path}/run",
        f"data.path={extended}/data", "training.eval_steps=2", *overrides,
    ).end()  # fmt: skip
    assert ended.code == 0, ended.output
    assert first_loss(tmp_path / "run") == pytest.approx(first_loss(extended), abs=1e-6)


def test_an_extended_model_is_itself_in_transformers(extended, dsv3, tmp_path):
    """Beyond the original length: the scale of attention, the angles and config.json at once."""
    assert dsv3("export", extended / "checkpoints", tmp_path / "hf").code == 0
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    scaling = config["rope_scaling"]
    assert (scaling["factor"], scaling["original_max_position_embeddings"]) == (5, 64)
    assert config["max_position_embeddings"] == 320

    tokens = np.random.default_rng(0).integers(MODEL["vocab_size"], size=(1, 300))
    np.save(tmp_path / "tokens.npy", tokens)
    ended = Command.forked(
        "logits", "--checkpoint", extended / "checkpoints", "--tokens", tmp_path / "tokens.npy",
        "--out", tmp_path / "out.npy",
    ).end()  # fmt: skip
    assert ended.code == 0, ended.output
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits
    ours = torch.from_numpy(np.load(tmp_path / "out.npy"))
    assert float((ours - expected).abs().max()) <= 1e-5

    text = "def read(self, size):\n" * 12
    ended = Command.forked(
        "generate", "--checkpoint", extended / "checkpoints", "--prompt", text,
        "--max-new-tokens", "8", "--temperature", "0",
    ).end()  # fmt: skip
    assert ended.code == 0, ended.output
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert ids.shape[1] > 64
    chosen = theirs.generate(ids, max_new_tokens=8, do_sample=False)
    assert ended.output.rstrip("\n") == tokenizer.decode(chosen[0], skip_special_tokens=True)


def prepared(folder, longer, *overrides):
    """Prepare a run without training it; what the person is told."""
    told = []
    recipe = load_recipe(longer, [f"directory={folder}", *overrides])
    folder.mkdir(exist_ok=True)
    laptop = Machine(gpus=0, transformer_engine=False)
    prepare(Run(recipe, RunFolder(folder), laptop), told.append)
    return told


def test_a_parent_that_is_replaced_before_any_step_leaves_nothing(
    longer, extended, exported, trained, tmp_path
):
    """Neither its weights nor its config.json, from which an export would go on."""
    run = tmp_path / "run"
    for source, imported in ((exported, True), (trained.folder, False)):
        told = prepared(run, longer, f"from={source}", f"data.path={extended}/data")
        assert (run / "checkpoints" / "hf_config.json").exists() is imported
        assert (run / "parent" / "release").exists() is imported
        assert not any("has no long document" in sentence for sentence in told)


def test_a_stream_without_a_long_document_says_how_long_they_are(longer, tmp_path):
    corpus = tmp_path / "lines.jsonl"
    lines = filter(None, inspect.getsource(inspect).splitlines())
    corpus.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    told = prepared(tmp_path / "run", longer, f"data.corpus={corpus}")
    lengths = map_sequences(tmp_path / "run" / "data" / "train").lengths
    (note,) = [sentence for sentence in told if "has no long document" in sentence]
    assert f"the longest has {lengths.max()} tokens and half of them" in note
    assert "of the 256 of a sequence" in note


def test_another_parent_is_refused_before_anything_is_written(longer, trained, tmp_path):
    ended = Command.forked(
        "train", longer, f"directory={tmp_path}/run",
        "model.original_max_position_embeddings=128",
    ).end()  # fmt: skip
    assert ended.code == 2
    assert "set model.original_max_position_embeddings=64" in ended.output
    assert not (tmp_path / "run").exists()
