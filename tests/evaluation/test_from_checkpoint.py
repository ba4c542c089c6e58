"""`dsv3 eval`, on the small run as training left it."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from dsv3_plugin.checkpoint import export_hf
from dsv3_plugin.distributed.world import single_process
from dsv3_plugin.errors import UserError
from dsv3_plugin.evaluation.checkpoint import Evaluated, Place
from dsv3_plugin.evaluation.from_checkpoint import losses_of, losses_of_checkpoint
from dsv3_plugin.evaluation.held_out import held_out_sets
from dsv3_plugin.evaluation.loss import losses_on
from dsv3_plugin.files.run_folder import RunFolder
from tests import oracles
from tests.small_runs import evaluated_samples, records

DEPTHS = ["--depths", "0,1", "--samples", "1", "--kind", "digits"]


def needle(dsv3, checkpoint, *words):
    return dsv3("eval", "needle", "--checkpoint", checkpoint, *words)


def test_a_run_is_asked_in_its_own_held_out_text(trained, dsv3, tmp_path):
    page = tmp_path / "needles.html"
    said = needle(dsv3, trained.folder, "--lengths", "100,128", *DEPTHS, "--html", page)
    assert said.code == 0, said.err
    assert f"the held-out text of {trained.folder}" in said.out
    *_, header, short, long = said.out.splitlines()
    assert header.split() == ["length", "0%", "100%", "no", "needle"]
    assert [row.split()[0] for row in (short, long)] == ["100", "128"]
    assert "<svg" in page.read_text()


def test_a_folder_of_checkpoints_is_the_same_and_json_has_all_that_was_asked(trained, dsv3):
    for folder in (trained.folder, trained.checkpoints):
        assert Place.named(folder).run.root == trained.folder
    said = needle(dsv3, trained.checkpoints, "--lengths", "128", *DEPTHS, "--json")
    told = json.loads(said.out)
    assert [(one["length"], one["depth"]) for one in told["right"]] == [
        (128, 0.0), (128, 1.0), (128, None),
    ]  # fmt: skip
    assert all(one["expected"].startswith(" ") for one in told["asked"])


def test_a_run_whose_checkpoints_are_elsewhere_is_the_same(trained, dsv3, tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    (run / "data").symlink_to(trained.data)
    shutil.copytree(trained.checkpoints, elsewhere)
    recipe = yaml.safe_load((trained.folder / "recipe.yaml").read_text())
    recipe |= {"directory": str(run)}
    recipe["checkpoint"]["directory"] = str(elsewhere)
    for folder in (run, elsewhere):
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for named in (run, elsewhere, next(elsewhere.glob("iter_*"))):
        assert Place.named(named).run == RunFolder(run, elsewhere)
    losses = [
        dsv3("eval", "loss", "--checkpoint", folder, "--sequences", "2", "--json").out
        for folder in (run, trained.folder)
    ]
    sets = [[one["loss"] for one in json.loads(each)["sets"]] for each in losses]
    assert sets[0] == sets[1]


def test_the_same_weights_are_asked_with_other_positions(trained, dsv3):
    beyond = ["--lengths", "256", *DEPTHS, "--haystack", "stdlib", "--json"]
    refused = needle(dsv3, trained.folder, *beyond)
    assert refused.code == 2
    assert "length 256 is beyond the model's 128 positions" in refused.err
    change = "model.max_position_embeddings=256"
    said = needle(dsv3, trained.folder, *beyond, change)
    assert said.code == 0, said.err
    assert json.loads(said.out)["changes"] == [change]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--lengths", "many"], "--lengths takes whole numbers with commas between them"),
        (["--lengths", "64.5"], "--lengths takes whole numbers"),
        (["--lengths", ""], "--lengths takes whole numbers"),
        (["--lengths", "128", "--depths", "nan"], "--depths takes numbers"),
        (["--lengths", "128", "--depths", "0,2"], "from 0 to 1, and cannot be 2"),
        (["--lengths", "20"], "less than facts, question and answer alone"),
        (["--lengths", "128", "--haystack", "nowhere"], "corpus nowhere does not exist"),
        (["--lengths", "128", "model.num_layers=3"], "another model than the one"),
        (["--lengths", "128", "model.rope_type=no"], "must be 'rope' or 'yarn'"),
        (["--lengths", "128", "--html", "page.png"], "--html writes .html files"),
    ],
)
def test_bad_input_is_one_sentence(trained, dsv3, words, sentence):
    said = needle(dsv3, trained.folder, *words)
    assert said.code == 2
    assert sentence in said.err
    assert said.err.count("\n") == 1


def test_a_folder_without_a_checkpoint_is_refused_with_the_way_out(dsv3, tmp_path):
    assert "holds no complete checkpoint" in needle(dsv3, tmp_path, "--lengths", "128").err
    (tmp_path / "config.json").write_text("{}")
    assert (
        f"dsv3 import {tmp_path} CHECKPOINT makes one"
        in needle(dsv3, tmp_path, "--lengths", "128").err
    )


@pytest.fixture
def world(dsv3):
    """One process, for the functions behind the verbs."""
    with single_process():
        yield


def samples_of_the_last_evaluation(trained):
    read = 2 * 8  # eval_steps of the first batch size
    return evaluated_samples(trained.data, 64, range(2 * read, 3 * read))


def test_the_loss_is_the_trainers_own_on_the_same_samples(trained, world):
    evaluated = Evaluated.load(Place.named(trained.folder))
    samples = samples_of_the_last_evaluation(trained)
    ours = losses_on("samples", samples, losses_of(evaluated, "samples"))
    trainers = [
        one["validation_loss"] for one in records(trained.folder) if "validation_loss" in one
    ]
    assert ours.loss == pytest.approx(trainers[-1], abs=1e-6)


def test_the_loss_is_transformers_of_the_export(trained, world, tmp_path):
    (ours,) = losses_of_checkpoint(trained.folder, most=5)
    export_hf(trained.checkpoints, tmp_path / "hf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    (held_out,) = held_out_sets(Place.named(trained.folder), None)
    tokens = [held_out.sequence(first, 65) for first in held_out.sequences(64, 5)]
    ids = torch.from_numpy(np.stack(tokens))
    logits = oracles.logits(theirs, ids[:, :-1]).transpose(1, 2)
    expected = torch.nn.functional.cross_entropy(logits, ids[:, 1:], reduction="none")
    theirs_by_position = expected.double().mean(0).numpy()
    np.testing.assert_allclose(ours.by_position, theirs_by_position, rtol=0, atol=1e-5)


def test_losses_of_many_positions_are_those_of_all_at_once(trained, world, monkeypatch):
    evaluated = Evaluated.load(Place.named(trained.folder))
    tokens = samples_of_the_last_evaluation(trained)[0]
    at_once = losses_of(evaluated, "it")(tokens)
    monkeypatch.setattr("dsv3_plugin.inference.logits._POSITIONS_AT_ONCE", 7)
    assert np.abs(losses_of(evaluated, "it")(tokens) - at_once).max() < 1e-6


def test_loss_prints_totals_and_positions(trained, dsv3, tmp_path):
    page = tmp_path / "loss.html"
    words = ["eval", "loss", "--checkpoint", trained.folder, "--sequences", "4"]
    said = dsv3(*words, "--by-position", "--html", page)
    assert said.code == 0, said.err
    assert [line for line in said.out.splitlines() if line.startswith("33 to 64 ")]
    assert "polyline" in page.read_text()
    told = json.loads(dsv3(*words, "--json").out)
    (one,) = told["sets"]
    assert (one["sequences"], one["seq_length"]) == (4, 64)  # the run's own length
    assert f"{one['loss']:.4f}" in said.out
    assert f"{one['by_position'][-1]['loss']:.4f}" in said.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--seq-length", "256"], "beyond the model's 128 positions"),
        (["--data", "nowhere"], "nowhere is no dataset"),
        (
            ["--seq-length", "90000", "model.max_position_embeddings=90000"],
            "less than one sequence of 90,000",
        ),
    ],
)
def test_a_loss_that_cannot_be_is_one_sentence(trained, dsv3, words, sentence):
    said = dsv3("eval", "loss", "--checkpoint", trained.folder, *words)
    assert said.code == 2
    assert sentence in said.err
    assert said.err.count("\n") == 1


def test_tokens_of_another_tokenizer_are_refused(trained, world):
    evaluated = Evaluated.load(Place.named(trained.folder))
    with pytest.raises(UserError, match="holds token 512, and the model knows 0 to 511"):
        losses_of(evaluated, "it")(np.array([1, 512]))
