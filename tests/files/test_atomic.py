"""A file is whole or not there, and an older one outlives a kill and a full disk."""

import os
import secrets
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.atomic import append_to, replace_file, replacing, whole_file
from dsv3_plugin.recipe.load import load_model
from tests.files.dying import deaths

OLD, NEW = b"old", b"new" * 10_000


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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


def test_a_kill_before_any_step_leaves_the_old_file_or_the_new(tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(OLD)
    seen = set()
    for _ in deaths(lambda: replace_file(path, NEW)):
        seen.add(path.read_bytes())
        assert len(names(tmp_path)) <= 2, "left-overs gather"
    assert seen == {OLD, NEW}
    assert path.read_bytes() == NEW
    assert names(tmp_path) == ["file.json"]


def test_a_kill_before_any_step_of_a_persons_file(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(OLD)

    def write() -> None:
        with whole_file(path) as beside:
            beside.write_bytes(NEW)

    assert {path.read_bytes() for _ in deaths(write)} == {OLD, NEW}
    assert path.read_bytes() == NEW


def test_an_error_while_writing_leaves_nothing_new(tmp_path):
    path = tmp_path / "file"

    def interrupted() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == []


@pytest.mark.parametrize("pattern", ["file.json.tmp", "file.tmp", ".file.{pid}.json"])
def test_a_link_at_a_name_that_could_be_foreseen_is_not_followed(tmp_path, pattern):
    predictable = pattern.format(pid=os.getpid())
    victim = tmp_path / "victim"
    victim.write_bytes(OLD)
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / predictable).symlink_to(victim)
    replace_file(folder / "file.json", NEW)
    with whole_file(folder / "other.json") as beside:
        beside.write_bytes(NEW)
    assert victim.read_bytes() == OLD
    assert names(folder) == sorted([predictable, "file.json", "other.json"])


def test_a_link_at_the_very_name_is_not_followed_either(tmp_path, monkeypatch):
    """Nobody can know it; if somebody did, we would refuse rather than write."""
    victim = tmp_path / "victim"
    victim.write_bytes(OLD)
    monkeypatch.setattr(secrets, "token_hex", lambda size: "g" * 2 * size)
    for beside in (".file.gggggggggggggggg.tmp", ".picture.gggggggggggggggg.png"):
        (tmp_path / beside).symlink_to(victim)
    with pytest.raises(FileExistsError):
        replace_file(tmp_path / "file", NEW)
    with pytest.raises(FileExistsError), whole_file(tmp_path / "picture.png"):
        pass
    assert victim.read_bytes() == OLD


def test_what_takes_the_place_of_a_link_does_not_write_through_it(tmp_path):
    """A file of ours is the folder's own, wherever somebody made its name lead."""
    (tmp_path / "victim").write_bytes(OLD)
    (tmp_path / "file").symlink_to(tmp_path / "victim")
    replace_file(tmp_path / "file", NEW)
    assert (tmp_path / "victim").read_bytes() == OLD
    assert (tmp_path / "file").read_bytes() == NEW


def test_errors_name_the_file_that_was_asked_for(tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(IsADirectoryError) as error, whole_file(tmp_path / "folder.png"):
        pytest.fail("known before the work is done")
    assert error.value.filename == f"{tmp_path}/folder.png"
    missing = tmp_path / "no" / "file.png"
    with pytest.raises(FileNotFoundError) as error, whole_file(missing):
        pass
    assert error.value.filename == str(missing)
    with pytest.raises(FileNotFoundError) as error:
        replace_file(missing, NEW)
    assert error.value.filename == str(missing)


def test_files_get_the_rights_that_any_new_file_gets(tmp_path):
    (tmp_path / "plain").write_bytes(NEW)
    replace_file(tmp_path / "ours", NEW)
    with whole_file(tmp_path / "theirs") as beside:
        beside.write_bytes(NEW)
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in names(tmp_path)}
    assert len(modes) == 1


@settings(max_examples=50)
@given(
    st.text(
        st.characters(exclude_characters="/\0", exclude_categories=["Cs"]),
        min_size=1,
        max_size=30,
    ).filter(lambda name: name not in (".", ".."))
)
def test_left_overs_of_this_file_go_and_of_no_other(name):
    token = "0123456789abcdef"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        others = [f".{name}x.{token}.tmp", f".{name}.{token[:-1]}.tmp", f".x{name}.{token}.tmp"]
        for beside in (f".{name}.{token}.tmp", *others):
            (folder / beside).write_bytes(OLD)
        replace_file(folder / name, NEW)
        assert names(folder) == sorted([name, *others])
        assert (folder / name).read_bytes() == NEW


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


def test_what_is_added_to_is_no_link(tmp_path):
    path, other = tmp_path / "metrics.jsonl", tmp_path / "other"
    for line in (b"1\n", b"2\n"):
        with append_to(path) as file:
            file.write(line)
    assert path.read_bytes() == b"1\n2\n"
    path.unlink()
    for target in (other, tmp_path / "not there"):
        other.write_bytes(b"not ours")
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        with pytest.raises(UserError, match="is a link"):
            append_to(path)
    assert other.read_bytes() == b"not ours"
    assert not (tmp_path / "not there").exists()
