"""`dsv3 eval`, on the small run as training left it."""

import json

import pytest

from dsv3_plugin.evaluation.checkpoint import Place

DEPTHS = ["--depths", "0,1", "--samples", "1", "--kind", "digits"]


def needle(dsv3, checkpoint, *words):
    return dsv3("eval", "needle", "--checkpoint", checkpoint, *words)


def test_a_run_is_asked_in_its_own_held_out_text(trained, dsv3, tmp_path):
    page = tmp_path / "needles.html"
    said = needle(dsv3, trained.folder, "--lengths", "100,128", *DEPTHS, "--html", page)
    assert said.code == 0, said.err
    assert f"the held-out part of {trained.data}" in said.out
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
    assert "dsv3 import makes one of it" in needle(dsv3, tmp_path, "--lengths", "128").err
