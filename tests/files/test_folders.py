"""A folder is the old one, none, or the new one, and never part of one."""

import secrets
import shutil
from pathlib import Path

import pytest

from dsv3_plugin.files.folders import whole_folder
from tests.files.dying import deaths

OLD, NEW = {"a": "old"}, {"a": "new", "b/c": "new too"}


def write(folder: Path, contents: dict[str, str]) -> None:
    for name, text in contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def read(folder: Path) -> dict[str, str] | None:
    if not folder.exists():
        return None
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_kill_before_any_step_leaves_the_old_folder_none_or_the_new(tmp_path):
    target = tmp_path / "target"

    def build() -> None:
        with whole_folder(target) as folder:
            write(folder, NEW)

    for old in (None, OLD):
        if old is not None:
            target.rename(tmp_path / "before")
            target.mkdir()
            write(target, old)
        for _ in deaths(build):
            assert read(target) in (old, None, NEW)
        assert read(target) == NEW
        assert not [*tmp_path.glob(".target.building-*")]


def test_what_breaks_off_changes_nothing(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    write(target, OLD)

    def interrupted() -> None:
        with whole_folder(target) as folder:
            write(folder, NEW)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert read(target) == OLD
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_left_overs_of_other_folders_stay(tmp_path):
    for name in (".[a].building-1", ".a.building-1"):
        (tmp_path / name).mkdir()
    with whole_folder(tmp_path / "[a]"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.building-1", "[a]"]


def test_a_link_at_the_name_beside_is_not_followed(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.mkdir()
    # Not what is swept, so that it is met where the folder is to be made.
    monkeypatch.setattr(Path, "glob", lambda *_: [])
    monkeypatch.setattr(secrets, "token_hex", lambda size: "0" * 2 * size)
    (tmp_path / ".target.building-0000000000000000").symlink_to(victim)
    with pytest.raises(FileExistsError), whole_folder(tmp_path / "target"):
        pass
    assert [*victim.iterdir()] == []


def test_a_link_gives_way_and_what_it_leads_to_stays(tmp_path):
    write(tmp_path, {"elsewhere/a": "kept"})
    for leads in (tmp_path / "elsewhere", tmp_path / "nowhere"):
        (tmp_path / "target").symlink_to(leads)
        with whole_folder(tmp_path / "target") as folder:
            write(folder, NEW)
        assert not (tmp_path / "target").is_symlink()
        assert read(tmp_path / "target") == NEW
        shutil.rmtree(tmp_path / "target")
    assert read(tmp_path) == {"elsewhere/a": "kept"}
