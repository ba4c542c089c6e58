"""Which checkpoint a run goes on from, and what it refuses before it writes anything."""

import os
import shutil
from pathlib import Path

import pytest
import yaml

from dsv3_plugin.checkpoint import export_hf, import_hf, trained_on
from dsv3_plugin.checkpoint.tracker import TRACKER
from dsv3_plugin.data.tokenizer import train_bpe
from dsv3_plugin.data.tokenizer_folder import TOKENIZER_FILES, digests
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.inference.from_checkpoint import continue_texts
from dsv3_plugin.inference.requests import SamplingParameters
from dsv3_plugin.machine import Machine
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.training.checkpoint_folder import retire
from dsv3_plugin.training.prepare import prepare
from dsv3_plugin.training.resume import refuse_another_model, whole_checkpoint
from dsv3_plugin.training.run import Run

LAPTOP = Machine(gpus=0, transformer_engine=False)


@pytest.fixture
def said() -> list[str]:
    """What the person is told."""
    return []


@pytest.fixture
def checkpoints(trained, tmp_path) -> Path:
    """A copy of the checkpoints of steps 4, 8 and 12."""
    return Path(shutil.copytree(trained.checkpoints, tmp_path / "checkpoints"))


def cut_short(checkpoint: Path) -> None:
    tensors = next(checkpoint.glob("*.distcp"))
    tensors.write_bytes(tensors.read_bytes()[:-1000])


def test_the_newest_checkpoint_is_the_one(checkpoints, said):
    assert whole_checkpoint(checkpoints, said.append).iteration == 12
    assert said == []


def test_a_folder_without_checkpoints_begins_anew(tmp_path, said):
    assert whole_checkpoint(tmp_path, said.append) is None
    assert whole_checkpoint(tmp_path / "nowhere", said.append) is None
    assert said == []


def test_a_damaged_checkpoint_is_passed_over_and_named(checkpoints, said):
    cut_short(checkpoints / "iter_0000012")
    assert whole_checkpoint(checkpoints, said.append).iteration == 8
    assert RunFolder(checkpoints.parent).steps_saved() == 8
    assert said == [
        f"The checkpoint {checkpoints}/iter_0000012 is damaged (files are missing or cut short); "
        "going on from the newest whole one, step 8."
    ]
    assert (checkpoints / "iter_0000012").exists(), "it may be of use to somebody"


def test_what_a_killed_save_left_behind_is_removed_without_a_word(checkpoints, said):
    (checkpoints / "iter_0000012" / "metadata.json").unlink()
    assert whole_checkpoint(checkpoints, said.append).iteration == 8
    assert not (checkpoints / "iter_0000012").exists()
    assert said == []


def test_a_kill_between_checkpoint_and_tracker_loses_no_checkpoint_before(checkpoints, said):
    (checkpoints / TRACKER).write_text("8")
    assert whole_checkpoint(checkpoints, said.append).iteration == 8
    (checkpoints / TRACKER).write_text("")
    assert whole_checkpoint(checkpoints, said.append).iteration == 12
    assert said == []


def test_when_every_checkpoint_is_damaged_nothing_begins_anew_over_them(checkpoints, said):
    for checkpoint in checkpoints.glob("iter_*"):
        cut_short(checkpoint)
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole: files of iter_0000012"):
        whole_checkpoint(checkpoints, said.append)


def test_the_newest_whole_ones_are_kept_by_number(tmp_path):
    for iteration, whole in {
        8: True,
        999_9999: True,
        1000_0000: False,  # a killed save
        1000_0001: True,
        1000_0002: False,  # being written
    }.items():
        (tmp_path / f"iter_{iteration:07d}").mkdir()
        if whole:
            (tmp_path / f"iter_{iteration:07d}" / "metadata.json").touch()
    retire(tmp_path, keep=2, newest=1000_0001)
    assert {path.name for path in tmp_path.iterdir()} == {
        "iter_9999999", "iter_10000001", "iter_10000002",
    }  # fmt: skip


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    """A copy of the whole run."""
    return Path(shutil.copytree(trained.folder, tmp_path / "run"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("model.hidden_size=32", r"another model .hidden_size is 64, the recipe says 32"),
        ("data.fim_rate=0.5", r"asks for other data than .* which this run began with"),
        ("data.corpus=/nowhere", r"asks for other data than .* which this run began with"),
        ("data.held_out=0.1", r"began with \(data.held_out is 0.1 and was 0.05\): restore it"),
        ("training.seed=7", r"written with training.seed: 1234, by which the order of its data"),
        ("data.tokenizer.vocab_size=600", r"tokenizer.*600.*was 512"),
        ("data.seq_length=32", r"written with data.seq_length: 64, by which"),
        ("parallel.zero1=true", r"written with parallel.zero1: false, whose optimizer states"),
    ],
)
def test_what_does_not_fit_the_run_is_refused_and_nothing_changes(
    trained, copied, change, sentence, said
):
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}

    before = contents()
    recipe = load_recipe(trained.recipe, [f"directory={copied}", change])
    with pytest.raises(UserError, match=sentence):
        prepare(Run(recipe, RunFolder(copied), LAPTOP), said.append)
    assert contents() == before


def test_a_finished_run_is_not_done_for_a_recipe_that_says_otherwise(trained, copied, dsv3):
    """It used to say "Nothing to do" to whatever had as many steps."""
    again = ["train", trained.recipe, f"directory={copied}"]
    for change, sentence in (
        ("data.seq_length=32", "data.seq_length: 64, by which the curves count"),
        ("training.seed=7", "training.seed: 1234, by which the order of its data was drawn"),
        ("data.corpus=/nowhere", "(data.corpus is /nowhere and was "),
        ("parallel.zero1=true", "parallel.zero1: false, whose optimizer states do not go over"),
    ):
        said = dsv3(*again, change)
        assert said.code == 2
        assert sentence in said.err
    here = Path.cwd() / load_recipe(trained.recipe).data.corpus
    said = dsv3(*again, f"data.corpus={os.path.relpath(here)}")
    assert (said.code, said.err) == (0, "")
    said = dsv3(*again)
    assert (said.code, said.err) == (0, "")
    assert said.out.endswith(f"Nothing to do: the run in {copied} has had all its tokens.\n")
    said = dsv3(*again, "optimizer.eps=1e-6", "curves.mtp_weight=0.2", "checkpoint.interval=3")
    assert said.code == 0
    assert "with another curves.mtp_weight, optimizer.eps than the recipe says now" in said.out


def test_other_curves_on_the_way_are_said(trained, copied, said):
    shutil.rmtree(copied / "checkpoints" / "iter_0000012")
    more = ["curves.learning_rate=1e-3", "training.steps=20"]
    recipe = load_recipe(trained.recipe, [f"directory={copied}", *more])
    prepare(Run(recipe, RunFolder(copied), LAPTOP), said.append)
    other = "From here on the recipe says otherwise than before: curves.learning_rate."
    assert said[:2] == ["Going on from step 8 of 20.", other]


def another_tokenizer(folder: Path) -> Path:
    train_bpe([str(number) for number in range(2000)], 300, folder)
    return folder


def test_data_that_were_built_anew_under_a_run_are_refused(trained, copied, said):
    known = trained_on.read(copied / "checkpoints")
    other = known.model_copy(update={"corpus": "0" * 32})
    trained_on.write(copied / "checkpoints", other)
    recipe = load_recipe(trained.recipe, [f"directory={copied}"])
    with pytest.raises(UserError, match=r"built anew since this run began, and its texts differ"):
        prepare(Run(recipe, RunFolder(copied), LAPTOP), said.append)


def test_another_tokenizer_beside_checkpoints_is_refused_by_all_that_read_it(
    trained, copied, tmp_path, said
):
    checkpoints = copied / "checkpoints"
    (checkpoints / "tokenizer" / "chat_template.jinja").write_text("a template")
    shutil.rmtree(checkpoints / "iter_0000012")
    recipe = load_recipe(trained.recipe, [f"directory={copied}"])
    run = Run(recipe, RunFolder(copied), LAPTOP)
    prepare(run, said.append)
    assert (checkpoints / "tokenizer" / "chat_template.jinja").exists(), "it came with the weights"

    shutil.rmtree(checkpoints / "tokenizer")
    another_tokenizer(checkpoints / "tokenizer")
    for use in (
        lambda: prepare(run, said.append),
        lambda: export_hf(checkpoints, tmp_path / "hf"),
        lambda: next(continue_texts(checkpoints, ["a"], SamplingParameters(max_tokens=1))),
    ):
        with pytest.raises(UserError, match=r"tokenizer is not the tokenizer that the checkpoints"):
            use()
    assert not (tmp_path / "hf").exists()

    shutil.rmtree(checkpoints / "tokenizer")
    prepare(run, said.append)
    assert digests(checkpoints / "tokenizer") == digests(copied / "data" / "tokenizer")


def test_imported_weights_keep_their_tokenizer(trained, tmp_path, said):
    """Its ids are what they know: another one is refused before anything is written."""
    hf, run = tmp_path / "hf", tmp_path / "run"
    export_hf(trained.checkpoints, hf)
    (hf / "chat_template.jinja").write_text("a template")
    import_hf(hf, run / "checkpoints")
    own = run / "checkpoints" / "tokenizer"
    other = another_tokenizer(tmp_path / "other")

    def prepared(*overrides: str) -> None:
        recipe = load_recipe(trained.recipe, [f"directory={run}", *overrides])
        prepare(Run(recipe, RunFolder(run), LAPTOP), said.append)

    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    before, theirs = contents(), digests(own, TOKENIZER_FILES)
    for tokenizer in (f"data.tokenizer={other}", "data.tokenizer.vocab_size=300"):
        with pytest.raises(UserError, match=f"another tokenizer than .*data.tokenizer={own}, or"):
            prepared(tokenizer)
        assert contents() == before
    (own / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": "own.Own"}}')
    with pytest.raises(UserError, match=r"cannot be told .*is never run.*: take theirs"):
        prepared(f"data.tokenizer={other}")
    (own / "tokenizer_config.json").write_bytes(before[own / "tokenizer_config.json"])

    prepared()  # trained on the same texts, it is the same
    assert digests(own, TOKENIZER_FILES) == theirs
    shutil.rmtree(run / "data")
    prepared(f"data.tokenizer={own}")
    assert digests(own, TOKENIZER_FILES) == theirs
    # On purpose: without theirs, the weights learn another, and nothing of the old one stays.
    shutil.rmtree(own)
    shutil.rmtree(run / "data")
    prepared(f"data.tokenizer={other}")
    assert {path.name for path in own.iterdir()} == {path.name for path in other.iterdir()}


def test_checkpoints_without_a_description_are_told_by_their_tensors(trained, copied, said):
    """As upstream leaves them; the folder must not be given another model's description."""
    (copied / "checkpoints" / "model.yaml").unlink()
    refuse_another_model(load_recipe(trained.recipe, [f"directory={copied}"]))
    for change, difference in [
        ("model.hidden_size=32", r".* is .*64.*, the model's is .*32.*"),
        ("model.num_layers=3", r".* is missing"),
        ("model.mtp_num_layers=null", r"mtp.* belongs to no layer of the model"),
    ]:
        more = ["model.moe_layer_freq=[0,1,1]"] if "layers=3" in change else []
        recipe = load_recipe(trained.recipe, [f"directory={copied}", change, *more])
        with pytest.raises(UserError, match=rf"another model than small .{difference}"):
            prepare(Run(recipe, RunFolder(copied), LAPTOP), said.append)
    assert not (copied / "checkpoints" / "model.yaml").exists()


@pytest.mark.parametrize(
    ("corpus", "sentence"),
    [("missing", "does not exist"), ("empty", "no text|empty|holds no")],
)
def test_a_corpus_that_is_not_there_is_refused(recipe, tmp_path, corpus, sentence, said):
    (tmp_path / "empty").mkdir()
    loaded = load_recipe(recipe, [f"directory={tmp_path}/run", f"data.corpus={tmp_path}/{corpus}"])
    with pytest.raises(UserError, match=sentence):
        prepare(Run(loaded, RunFolder(tmp_path / "run"), LAPTOP), said.append)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_resumed_run_says_where_and_drops_the_lines_it_will_write_again(trained, copied, said):
    shutil.rmtree(copied / "checkpoints" / "iter_0000012")
    recipe = load_recipe(trained.recipe, [f"directory={copied}"])
    prepare(Run(recipe, RunFolder(copied), LAPTOP), said.append)
    assert said == ["Going on from step 8 of 12."]
    kept = [yaml.safe_load(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in kept] == [0, 1, 2, 3, 4, 5, 6, 6, 7, 8]


def test_what_a_run_goes_on_with_is_kept_and_told(trained, copied, said):
    """The recipe is kept under the step that it goes on from; a held-out part too small is said."""
    shutil.rmtree(copied / "checkpoints" / "iter_0000012")
    words = [f"directory={copied}", "training.eval_steps=2000"]
    prepare(Run(load_recipe(trained.recipe, words), RunFolder(copied), LAPTOP), said.append)
    first, note = said
    assert first == "Going on from step 8 of 12."
    # 0, 6 and 12: 2,000 batches of eight each.
    assert note.startswith("The held-out part has ")
    assert note.endswith(" sequences and 3 evaluations read 48,000: it is repeated.")
    kept = sorted(path.name for path in (copied / "recipes").iterdir())
    assert kept == ["1_from_step_0.yaml", "2_from_step_8.yaml"]
    steps = [yaml.safe_load((copied / "recipes" / name).read_text()) for name in kept]
    assert [one["training"]["eval_steps"] for one in steps] == [2, 2000]


def test_what_is_read_of_each_member_of_a_mixture_is_told(recipe, tmp_path, said):
    lines = "".join(f"{number} bottles of beer on the wall\n" for number in range(300))
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(lines)
    corpus = f"[{{path: {tmp_path}/a.txt, weight: 3}}, {{path: {tmp_path}/b.txt, weight: 1}}]"
    words = [f"directory={tmp_path}/run", f"data.corpus={corpus}", "data.held_out=0"]
    words += ["data.fim_rate=0", "training.eval_interval=null"]
    prepare(Run(load_recipe(recipe, words), RunFolder(tmp_path / "run"), LAPTOP), said.append)
    shares = [note.partition(" of the sequences come from ") for note in said[-2:]]
    assert [share for share, _, _ in shares] == ["75.0%", "25.0%"]
    assert [rest.partition(":")[0] for *_, rest in shares] == [f"{tmp_path}/{n}.txt" for n in "ab"]
    assert all(" tokens " in rest and rest.endswith(" times.") for *_, rest in shares)
