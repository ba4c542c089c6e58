"""A full disk while saving: one sentence, and nothing that was safe is lost."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from dsv3_plugin.errors import UserError, user_error_in
from dsv3_plugin.files import full_disk
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.training.checkpoint_folder import write_description
from tests.small_runs import Command, numbers


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: float) -> Iterator[None]:
    """A file system in memory of that size, mounted at `folder`."""
    folder.mkdir()
    size = f"size={int(megabytes * 1024)}k"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], check=False)
    if mounted.returncode != 0:
        pytest.skip("a file system cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
@pytest.mark.parametrize("meanwhile", [False, True])
def test_a_checkpoint_that_does_not_fit_costs_only_the_steps_since_the_last(
    trained, tmp_path, meanwhile
):
    place = tmp_path / "disk"
    arguments = (
        "train", trained.recipe, f"directory={place}/run", f"data.path={trained.data}",
        f"checkpoint.async_save={str(meanwhile).lower()}", "checkpoint.keep=1",
    )  # fmt: skip
    with small_disk(place, 6):
        ended = Command.forked(*arguments).end()
        assert ended.code == 2, ended.output
        assert ended.output.splitlines()[-1] == (
            f"dsv3: no space left for the checkpoint of step 8 in {place}/run/checkpoints: make "
            "room and start again; the run goes on from the checkpoint before."
        )
        assert "Traceback" not in ended.output
        assert RunFolder(place / "run").steps_saved() == 4

        subprocess.run(["mount", "-o", "remount,size=50m", place], check=True)
        ended = Command.forked(*arguments).end()
        assert ended.code == 0, ended.output
        assert "Going on from step 4 of 12." in ended.output
        assert numbers(place / "run") == numbers(trained.folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_description_that_does_not_fit_is_one_sentence(trained, tmp_path):
    with small_disk(tmp_path / "disk", 0.1):
        recipe = load_recipe(trained.recipe, [f"checkpoint.directory={tmp_path}/disk"])
        tokenizer = tmp_path / "tokenizer"
        tokenizer.mkdir()
        (tokenizer / "tokenizer.json").write_bytes(b" " * 200_000)
        data = SimpleNamespace(tokenizer_dir=tokenizer, corpus_digest="", tokenizer_digest="")
        with pytest.raises(UserError) as refusal:
            write_description(recipe, data, None)
    assert str(refusal.value) == (
        f"the checkpoint folder {tmp_path}/disk cannot be written (No space left on device): make "
        "room, or choose another with checkpoint.directory=PATH."
    )


def test_a_full_disk_is_known_by_number_and_by_text_however_deep():
    def wrapped(cause: Exception) -> Exception:
        try:
            try:
                raise cause
            except Exception as error:
                raise RuntimeError("a layer between") from error
        except RuntimeError as error:
            return error

    assert full_disk.is_full(wrapped(OSError(28, "No space left on device")))
    assert full_disk.is_full(wrapped(OSError(122, "Disk quota exceeded")))
    assert full_disk.is_full(wrapped(OSError(27, "File too large")))
    assert full_disk.is_full(wrapped(RuntimeError("PytorchStreamWriter failed: No space left")))
    assert not full_disk.is_full(wrapped(OSError(2, "No such file")))
    assert user_error_in(wrapped(UserError("the sentence"))).args == ("the sentence",)


def test_what_the_system_refuses_becomes_one_sentence(tmp_path):
    def refused() -> None:
        with full_disk.write_errors_as(lambda reason: f"it cannot be written ({reason})."):
            (tmp_path / "no" / "file").write_text("")

    with pytest.raises(UserError, match=r"^it cannot be written .No such file or directory..$"):
        refused()


def test_a_copy_that_failed_tells_why_as_a_single_file_does(tmp_path):
    """shutil gathers one error per file, in an error without a reason of its own."""
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "link").symlink_to("nowhere")
    with pytest.raises(shutil.Error) as error:
        shutil.copytree(tmp_path / "from", tmp_path / "to")
    assert full_disk.reason(error.value) == "No such file or directory"
