"""A file that a person asked for is whole or not there, and an older one outlives a full disk."""

import os
import subprocess
from pathlib import Path

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.atomic import whole_file
from dsv3_plugin.recipe.load import load_model


def test_what_breaks_off_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "picture.png"
    path.write_text("old")

    def interrupted() -> None:
        with whole_file(path) as beside:
            assert beside.suffix == ".png"
            beside.write_text("half of a")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        interrupted()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("picture.png", "old")]
    with whole_file(path) as beside:
        beside.write_text("new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("picture.png", "new")]


def test_a_link_stays_a_link_and_a_device_a_device(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with whole_file(tmp_path / "link") as beside:
        beside.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    with whole_file("/dev/null") as beside:
        beside.write_text("gone")
    assert not Path("/dev/null").is_file()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_model_that_does_not_fit_on_the_disk_leaves_the_one_before(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "x", place]).returncode != 0:
        pytest.skip("a file system cannot be mounted here")
    try:
        model = load_model("tiny")
        model.write(place / "model.yaml")
        before = (place / "model.yaml").read_bytes()
        (place / "filler").write_bytes(b" " * 4096)
        with pytest.raises(UserError, match=r"cannot be written .No space left on device"):
            model.write(place / "model.yaml")
        assert (place / "model.yaml").read_bytes() == before
        assert sorted(path.name for path in place.iterdir()) == ["filler", "model.yaml"]
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)
