"""What a job would lack, as far as it can be seen from where it is submitted."""

import os
import sys
from pathlib import Path

import pytest

from dsv3_plugin.data.build import build_dataset
from dsv3_plugin.data.tokenizer import TrainBpe
from dsv3_plugin.errors import UserError
from dsv3_plugin.launch.job_values import Place, place_on
from dsv3_plugin.launch.needs import View, lacking, missing_texts, refuse_missing_texts
from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.planner.cluster_launch import Container, Launch
from dsv3_plugin.recipe.load import load_recipe


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lacks(*overrides: str, recipe: str = "pretrain/tiny", waits: bool = False, **launch):
    keys = Launch(**launch)
    cluster = load_cluster("cpu").model_copy(update={"launch": keys})
    place = place_on(cluster, Path.cwd())
    loaded = load_recipe(recipe, overrides)
    found = lacking(loaded, keys, place, Path.cwd(), waits=waits)
    return [(lack.sentence, lack.certain) for lack in found]


def test_a_recipe_that_brings_its_data_lacks_nothing():
    assert lacks() == []


@pytest.mark.parametrize(
    ("override", "refused"),
    [
        ("data.corpus=/nowhere/texts", "data.corpus: /nowhere/texts does not exist: put it there"),
        ("data.tokenizer=gpt9", "data.tokenizer: gpt9 does not exist in "),
    ],
)
def test_a_run_here_sees_what_is_seen_here(override: str, refused: str):
    with pytest.raises(UserError, match=refused):
        refuse_missing_texts(load_recipe("pretrain/tiny", [override]))
    refuse_missing_texts(load_recipe("pretrain/tiny", ["data.tokenizer=deepseek-ai/DeepSeek-V3"]))


def test_all_that_a_run_here_misses_is_told_but_what_it_makes(here):
    words = ["data.corpus=texts", "data.tokenizer=gpt9"]
    assert missing_texts(load_recipe("pretrain/tiny", words)) == [
        f"data.corpus: texts does not exist in {here}: put it there, or name another",
        f"data.tokenizer: gpt9 does not exist in {here}: put it there, or name another",
    ]
    assert missing_texts(load_recipe("pretrain/tiny", [*words, "data.made_by=mine.write"])) == []


def test_texts_and_tokenizer_that_are_not_in_the_folder_are_certainly_missing(here):
    words = ("data.corpus=corpus/", "data.tokenizer=tokenizer/")
    missing = [
        f"{key} does not exist in {here}: put it there, or name another"
        for key in ("data.corpus: corpus", "data.tokenizer: tokenizer")
    ]
    assert lacks(*words) == [(sentence, True) for sentence in missing]
    # The job before it may make them.
    assert lacks(*words, waits=True) == [(sentence, False) for sentence in missing]
    for name in ("corpus", "tokenizer"):
        (here / name).mkdir()
    (unprepared, is_certain), (without, has_none) = lacks(*words)
    assert unprepared.startswith("the data of tiny are not prepared in runs/tiny/data: ")
    assert without.startswith("data.tokenizer: tokenizer/ has no vocabulary (tokenizer.json, ")
    assert (is_certain, has_none) == (False, True)
    (here / "tokenizer" / "tokenizer.json").write_text("{}")
    assert len(lacks(*words)) == 1


def test_a_template_is_missed_whoever_makes_the_texts(here):
    sentence = f"data.template: nope.jinja does not exist in {here}: put it there, or name another"
    words = ("data.template=nope.jinja", "data.made_by=mine.write")
    assert missing_texts(load_recipe("sft/tiny", words)) == [sentence]
    assert (sentence, True) in lacks(*words, recipe="sft/tiny", waits=False)
    (here / "nope.jinja").touch()
    assert missing_texts(load_recipe("sft/tiny", words)) == []


def test_an_encoded_corpus_is_two_files(here):
    (here / "texts.bin").touch()
    (here / "tokenizer").mkdir()
    (here / "tokenizer" / "tokenizer.json").write_text("{}")
    [(sentence, is_certain)] = lacks("data.corpus=texts.bin", "data.tokenizer=tokenizer")
    assert sentence.startswith(f"data.corpus: texts.idx does not exist in {here}: ")
    assert is_certain


def test_what_is_on_another_file_system_may_be_on_the_nodes():
    [(sentence, is_certain)] = lacks("data.corpus=/of-the-nodes/corpus")
    assert sentence == (
        "data.corpus: /of-the-nodes/corpus cannot be seen from here; the nodes need it"
    )
    assert not is_certain
    [(sentence, is_certain)] = lacks("data.tokenizer=deepseek-ai/DeepSeek-V3")
    assert "is looked for on Hugging Face's hub" in sentence
    assert not is_certain


def test_a_link_to_what_is_not_mounted_here_is_not_missing(here):
    (here / "corpus").symlink_to("/of-the-nodes/corpus")
    assert View(here).of(Path("corpus")) == "unseen"
    (here / "corpus").unlink()
    assert View(here).of(Path("corpus")) == "missing"


def test_an_image_sees_what_is_mounted_into_it(here, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "corpus").mkdir()
    image = Container(runtime="pyxis", image="x")
    [(sentence, is_certain)] = lacks(f"data.corpus={elsewhere}/corpus", container=image)
    assert sentence == (
        f"data.corpus: {elsewhere}/corpus is here, and the image sees it only if it holds it "
        "itself: add it to launch.container.mounts"
    )
    assert not is_certain
    mounted = image.model_copy(update={"mounts": [f"{elsewhere}:/data"]})
    view = View(here, place_on_image(mounted).mounts)
    assert view.of(Path("/data/corpus")) == "there"
    assert view.of(here / "corpus") == "missing"
    assert view.of(Path("/opt/corpus")) == "unseen"


def place_on_image(image: Container) -> Place:
    cluster = load_cluster("cpu").model_copy(update={"launch": Launch(container=image)})
    return place_on(cluster, Path.cwd())


def test_texts_that_data_were_prepared_from_need_not_be_there(here):
    (here / "texts.jsonl").write_text('{"text": "some words of a document"}\n' * 40)
    small = TrainBpe(300)
    build_dataset(["texts.jsonl"], small, here / "runs/tiny/data", held_out=0.0)
    (here / "texts.jsonl").unlink()
    assert lacks("data.corpus=texts.jsonl") == []
    [(sentence, _)] = lacks("data.corpus=others.jsonl")
    assert "others.jsonl does not exist" in sentence


def test_what_a_function_makes_is_made_by_the_job_or_before(here):
    made = ("data.made_by=dsv3_plugin.data.problems.write", "data.corpus=made/texts.jsonl")
    assert lacks(*made) == [
        (
            "data.corpus: made/texts.jsonl is not made yet: a rank of the job makes it, by "
            "dsv3_plugin.data.problems.write; dsv3 data prepare does so before",
            False,
        )
    ]


def test_a_parent_has_to_be_there_when_the_job_begins(here):
    [(sentence, is_certain)] = lacks(recipe="extend/tiny-1k")
    assert sentence.startswith("from: runs/tiny is not there yet, and has to be when the job begin")
    assert not is_certain
    assert lacks(recipe="extend/tiny-1k", waits=True) == []


def test_a_parent_that_was_stopped_on_its_way_is_no_parent_yet(here):
    parent = load_recipe("pretrain/tiny", ["training.steps=40"])
    parent.run_folder.checkpoints.mkdir(parents=True)
    parent.run_folder.write_recipe(parent.to_yaml())
    (parent.checkpoint_folder / "latest_checkpointed_iteration.txt").write_text("3")
    made_by = "parent_recipe=pretrain/tiny"
    (lack,) = lacks(made_by, recipe="extend/tiny-1k")
    assert lack == (
        "from: runs/tiny is at step 3 of 40: finish it first (dsv3 train runs/tiny/recipe.yaml, or "
        "launch), or begin with it as it is by parent_recipe=null",
        True,
    )
    assert lacks(made_by, recipe="extend/tiny-1k", waits=True) == []
    assert lacks("parent_recipe=null", recipe="extend/tiny-1k") == []
    assert lacks("parent_recipe=rl/tiny-base", recipe="extend/tiny-1k") == []  # made elsewhere
    (parent.checkpoint_folder / "latest_checkpointed_iteration.txt").write_text("40")
    assert lacks(made_by, recipe="extend/tiny-1k") == []


@pytest.mark.parametrize(
    ("of_the_root", "path", "seen"),
    [
        (True, "{here}/../nowhere/x", "missing"),  # under the same folder of the root
        (True, "/usr/nowhere/x", "unseen"),
        (True, "/nowhere/x", "unseen"),  # which may be where a shared one is mounted
        (False, "{here}/../nowhere/x", "missing"),
    ],
)
def test_what_is_missing_below_the_folder_that_is_shared_is_missing_there(
    here, monkeypatch, of_the_root, path, seen
):
    whose = Path.stat

    def stat(self, **how):
        found = whose(self, **how)
        device = 1 if of_the_root or self != Path("/") else 2
        return os.stat_result((*found[:2], device, *found[3:]))

    monkeypatch.setattr(Path, "stat", stat)
    assert View(here).of(Path(path.format(here=here))) == seen


def venv(folder: Path, python: str) -> str:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "activate").touch()
    (folder / "bin" / "python").write_text(python)
    (folder / "bin" / "python").chmod(0o755)
    return str(folder)


def test_an_environment_without_dsv3_is_found_out(here):
    [(sentence, is_certain)] = lacks(venv=str(here / "venv"))
    assert (sentence, is_certain) == (
        f"launch.venv: {here}/venv/bin/activate does not exist: put it there, or name another",
        True,
    )
    (here / "file").touch()
    assert lacks(venv=str(here / "file")) == [
        (
            f"launch.venv: {here}/file is a file: name the folder of an environment, in which "
            "bin/activate lies",
            True,
        )
    ]
    without = venv(here / "without", f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    assert lacks(venv=without) == [
        (
            f"launch.venv: dsv3 is not installed in {without}: {without}/bin/pip install it there, "
            "or name another environment in the cluster's file",
            True,
        )
    ]
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    has_it = f'#!/bin/sh\nPYTHONPATH={root} exec {sys.executable} "$@"\n'
    assert lacks(venv=venv(here / "with", has_it)) == []
    # Of nodes with other processors.
    [(sentence, is_certain)] = lacks(venv=venv(here / "other", "\x7fELF of another machine"))
    assert "does not run here (Exec format error)" in sentence
    assert not is_certain
