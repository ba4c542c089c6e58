"""After any kill, the checkpoint that is whole is found, and only that."""

import contextlib
import json
import os
import shutil

import pytest

from dsv3_plugin.checkpoint import import_hf, tracker, trained_on
from dsv3_plugin.checkpoint.conversion import journal
from dsv3_plugin.checkpoint.conversion.weights import open_weights
from dsv3_plugin.checkpoint.inspect import inspect
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.recipe.hf_config import hf_config
from tests.checkpoint.samples import random_tensors, small_model, write_folder

MODEL = small_model(num_layers=1, moe_layer_freq="[1]", mtp_num_layers=None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("tracker")
    write_folder(root / "folder", MODEL, random_tensors(MODEL, "bf16"))
    import_hf(root / "folder", root / "checkpoint")
    return root / "checkpoint" / "release"


@pytest.fixture
def directory(whole, tmp_path):
    """Iterations 10, 20 and 30, the tracker naming the last."""
    for iteration in (10, 20, 30):
        shutil.copytree(whole, tmp_path / f"iter_{iteration:07d}")
    (tmp_path / tracker.TRACKER).write_text("30")
    return tmp_path


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


DAMAGES = {
    "no metadata yet": lambda it: (it / ".metadata").unlink(),
    "metadata cut short": lambda it: truncate(it / ".metadata"),
    "metadata empty": lambda it: os.truncate(it / ".metadata", 0),
    "mark of the format missing": lambda it: (it / "metadata.json").unlink(),
    "mark of the format cut short": lambda it: truncate(it / "metadata.json"),
    "data missing": lambda it: (it / "__0_0.distcp").unlink(),
    "data cut short": lambda it: truncate(it / "__0_0.distcp"),
    "folder empty": lambda it: [file.unlink() for file in it.iterdir()],
}


def test_the_tracker_decides_among_whole_ones(directory):
    assert tracker.newest_complete(directory).iteration == 30
    (directory / tracker.TRACKER).write_text("10\n")  # somebody went back on purpose
    assert tracker.newest_complete(directory).iteration == 10


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_iteration_is_passed_over(directory, damage):
    DAMAGES[damage](directory / "iter_0000030")
    found = tracker.newest_complete(directory)
    assert (found.iteration, found.path) == (20, directory / "iter_0000020")
    assert tracker.repair(directory) == found
    assert (directory / tracker.TRACKER).read_text() == "20"


@pytest.mark.parametrize("text", ["", "3", "garbage", "-1", None, "40"])
def test_a_tracker_that_cannot_be_trusted(directory, text):
    (directory / tracker.TRACKER).unlink()
    if text is not None:
        (directory / tracker.TRACKER).write_text(text)
    assert tracker.newest_complete(directory).iteration == 30
    tracker.repair(directory)
    assert (directory / tracker.TRACKER).read_text() == "30"


def test_a_tracker_that_names_what_is_not_there(directory):
    (directory / tracker.TRACKER).write_text("40")
    with pytest.raises(UserError) as refused:
        tracker.find(directory)
    assert str(refused.value) == (
        f"{directory}/{tracker.TRACKER} names 40, and {directory}/iter_0000040 is not there; there "
        "are iter_0000030, iter_0000020, iter_0000010: write 30 into the file, or name "
        f"{directory}/iter_0000030."
    )
    for path in directory.glob("iter_*"):
        shutil.rmtree(path)
    with pytest.raises(UserError, match="is not there, nor any other: copy it again"):
        tracker.find(directory)


@pytest.mark.parametrize("text", ["", "garbage", None])
def test_what_upstream_does_not_find_is_noted(whole, directory, tmp_path_factory, text):
    released = tmp_path_factory.mktemp("released")
    shutil.copytree(whole, released / "release")
    shutil.copy(whole.parent / "model.yaml", released)
    shutil.copy(whole.parent / "model.yaml", directory)
    for folder, said in ((directory, "--ckpt-step 30"), (released, "write release into it")):
        (folder / tracker.TRACKER).unlink(missing_ok=True)
        if text is not None:
            (folder / tracker.TRACKER).write_text(text)
        found = inspect(folder)
        assert found.complete
        assert [said in sentence for sentence in found.advice] == [True]
    (directory / tracker.TRACKER).write_text("30")
    assert not inspect(directory).advice


def test_nothing_whole_at_all(directory):
    for path in directory.glob("iter_*"):
        (path / ".metadata").unlink()
    assert tracker.newest_complete(directory) is None
    assert tracker.repair(directory) is None
    assert not (directory / tracker.TRACKER).exists()  # upstream starts anew instead of failing
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        tracker.find(directory)
    assert tracker.newest_complete(directory / "nowhere") is None


def test_a_folder_without_checkpoints_says_where_they_are(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "checkpoints" / "release")
    with pytest.raises(UserError, match=rf", and {tmp_path}/checkpoints does: name that"):
        tracker.find(tmp_path)
    with pytest.raises(UserError, match=r"nowhere does not exist: name a checkpoint, or the"):
        tracker.find(tmp_path / "nowhere")


def test_release(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "release")
    found = tracker.newest_complete(tmp_path)
    assert (found.release, found.tracked) == (True, "release")
    (tmp_path / tracker.INCOMPLETE).write_text("{}")
    assert tracker.newest_complete(tmp_path) is None
    assert tracker.repair(tmp_path) is None
    with pytest.raises(UserError, match="unfinished"):
        tracker.find(tmp_path)
    with pytest.raises(UserError, match="unfinished"):
        tracker.find(tmp_path / "release")


def test_a_tracker_that_is_a_link_becomes_a_file(directory, tmp_path_factory):
    """Upstream opens it by its name to write the next number."""
    other = tmp_path_factory.mktemp("other") / "other"
    other.write_text("30")
    (directory / tracker.TRACKER).unlink()
    (directory / tracker.TRACKER).symlink_to(other)
    assert tracker.repair(directory).iteration == 30
    assert not (directory / tracker.TRACKER).is_symlink()
    assert other.read_text() == "30"


def test_the_folder_of_a_run_holds_no_weights_itself(whole, tmp_path):
    """Whoever takes a run's folder for its weights goes by `recipe.places`."""
    shutil.copytree(whole, tmp_path / "checkpoints" / "release")
    with pytest.raises(UserError, match=rf", and {tmp_path}/checkpoints does: name that"):
        open_weights(tmp_path)
    assert inspect(tmp_path) == inspect(tmp_path / "checkpoints")


def test_a_number_that_is_none_names_no_iteration(tmp_path):
    (tmp_path / tracker.TRACKER).write_text("9" * 5000)
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        tracker.find(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(hf_config(small_model())))
    with pytest.raises(UserError, match="holds no weights"):
        inspect(tmp_path)


@pytest.mark.parametrize("name", [tracker.TRACKER, ".metadata", "trained_on.json", "INCOMPLETE"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    for look in (tracker.find, trained_on.read, lambda folder: journal.peek(folder / "INCOMPLETE")):
        with contextlib.suppress(UserError):
            look(tmp_path)
    assert RunFolder(tmp_path, tmp_path).steps_saved() == 0


def test_upstream_is_told_the_step_that_the_tracker_does_not_name(directory):
    assert tracker.step_to_name(directory / "iter_0000030") is None
    assert tracker.step_to_name(directory / "iter_0000020") == 20
    (directory / tracker.TRACKER).unlink()
    assert tracker.step_to_name(directory / "iter_0000030") == 30
    for text, named in ((None, "nothing, since it is not there"), ("hello", "no checkpoint")):
        if text is not None:
            (directory / tracker.TRACKER).write_text(text)
        way = rf"names {named}, and Megatron-LM .*: write release into it for"
        with pytest.raises(UserError, match=way):
            tracker.step_to_name(directory / "release")
    (directory / tracker.TRACKER).write_text("release")
    assert tracker.step_to_name(directory / "release") is None
    with pytest.raises(UserError, match=r"names release, .*: write 20 into it for"):
        tracker.step_to_name(directory / "iter_0000020")
