"""Links that leave a folder are refused; the Hugging Face cache's own stay within it."""

import os
from pathlib import Path

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.links import inside, is_name


def cache(place: Path) -> Path:
    """A snapshot as the Hugging Face cache lays it out."""
    repository = place / "models--org--name"
    snapshot = repository / "snapshots" / "0123abcd"
    (snapshot / "tokenizer").mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "f00d").write_text("held once")
    (snapshot / "config.json").symlink_to("../../blobs/f00d")
    (snapshot / "tokenizer" / "tokenizer.json").symlink_to("../../../blobs/f00d")
    return snapshot


def test_what_is_in_the_folder(tmp_path):
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file").write_text("text")
    (folder / "near").symlink_to("deep/file")
    (folder / "twice").symlink_to("near")
    (tmp_path / "named").symlink_to(folder)
    for name in ("near", "twice", "deep/file", "not there"):
        assert inside(folder, name) == folder / name
        assert inside(tmp_path / "named", name) == tmp_path / "named" / name


def test_the_hugging_face_cache(tmp_path):
    snapshot = cache(tmp_path / "disk")
    (tmp_path / "hub").symlink_to(tmp_path / "disk")
    moved = tmp_path / "hub" / snapshot.relative_to(tmp_path / "disk")
    for folder in (snapshot, moved):
        assert inside(folder, "config.json").read_text() == "held once"
        assert inside(folder / "tokenizer", "tokenizer.json").read_text() == "held once"


@pytest.mark.parametrize("how", ["/etc/passwd", "../secret", "step", "around", "gone"])
def test_what_leads_out(tmp_path, how):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    (folder / "step").symlink_to("inner")
    (folder / "inner").symlink_to(tmp_path / "secret")
    (folder / "folder").symlink_to(tmp_path)
    (folder / "around").symlink_to("folder/secret")
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    (folder / "file").symlink_to(how)
    with pytest.raises(UserError, match="file leads out of its folder, to "):
        inside(folder, "file")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret"])
def test_names_that_lead_out(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="leads out of its folder"):
        inside(tmp_path / "folder", name)


def test_links_in_a_circle_lead_nowhere(tmp_path):
    (tmp_path / "file").symlink_to("file")
    assert not inside(tmp_path, "file").is_file()


def test_a_made_up_cache_reaches_no_further_than_a_real_one(tmp_path):
    snapshot = cache(tmp_path)
    blobs = snapshot.parent.parent / "blobs"
    (snapshot / "secret").symlink_to("../../blobs/secret")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret").write_text("secret")

    (blobs / "secret").symlink_to(tmp_path / "elsewhere" / "secret")
    with pytest.raises(UserError, match="leads out"):
        inside(snapshot, "secret")
    os.rename(blobs, tmp_path / "aside")
    blobs.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="leads out"):
        inside(snapshot, "secret")


@pytest.mark.parametrize("name", ["a.safetensors", "__0_0.distcp", "γ", ".hidden"])
def test_names_of_files_in_a_folder(name):
    assert is_name(name)


@pytest.mark.parametrize("value", ["", "..", ".", "a/b", "/a", "a\0", "a\n", "\ud800", 7, None])
def test_what_names_no_file_in_a_folder(value):
    assert not is_name(value)
