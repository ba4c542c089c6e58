"""What a kill leaves behind, at whichever byte, costs no finished problem and writes none twice."""

import json
from pathlib import Path

import pytest

from dsv3_plugin.distillation.ledger import Ledger
from dsv3_plugin.errors import UserError

SETTINGS = {"n": 2, "system": None}
ROWS = {
    key: [{"prompt": key, "response": "é" * size}] * size
    for key, size in zip("abc", (2, 0, 1), strict=True)
}


def told(key: str) -> dict[str, object]:
    return {"answers": 2, "kept": len(ROWS[key]), "rejected": {"bad": 2 - len(ROWS[key])}}


def write(path: Path, keys: str = "abc") -> None:
    with Ledger(path, SETTINGS) as ledger:
        for key in keys:
            if key not in ledger.finished:
                ledger.add(key, ROWS[key], told(key))


@pytest.fixture
def whole(tmp_path: Path) -> tuple[bytes, bytes]:
    write(tmp_path / "whole.jsonl")
    return tuple((tmp_path / f"whole.jsonl{end}").read_bytes() for end in ("", ".progress"))


def test_what_is_finished_is_counted_again(tmp_path: Path, whole: tuple[bytes, bytes]) -> None:
    assert [json.loads(line)["prompt"] for line in whole[0].splitlines()] == ["a", "a", "c"]
    with Ledger(tmp_path / "whole.jsonl", SETTINGS) as ledger:
        assert ledger.finished == {"a", "b", "c"}
        assert ledger.counts == {"problems": 3, "answers": 6, "kept": 3, "samples": 3}
        assert (ledger.rejected, ledger.barren) == ({"bad": 3}, 1)


def test_a_kill_wherever_it_cuts_is_made_good(tmp_path: Path, whole: tuple[bytes, bytes]) -> None:
    samples, lines = whole
    for cut in (*range(0, len(lines), 13), len(lines) - 1, len(lines)):
        path = tmp_path / f"cut{cut}.jsonl"
        path.with_name(path.name + ".progress").write_bytes(lines[:cut])
        # Samples are on the disk before the line that says so, and maybe further ones.
        path.write_bytes(samples + b'{"prompt": "half')
        write(path)
        assert (path.read_bytes(), path.with_name(path.name + ".progress").read_bytes()) == whole


def test_other_settings_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "x.jsonl")
    with pytest.raises(UserError, match=r"x\.jsonl was begun with n 2, and not 4: go on with that"):
        Ledger(tmp_path / "x.jsonl", SETTINGS | {"n": 4})


def test_one_writes_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with Ledger(path, SETTINGS), pytest.raises(UserError, match="another process writes"):
        Ledger(path, SETTINGS)
    write(path)


def test_what_lost_samples_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    write(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"is shorter than x\.jsonl\.progress beside it says"):
        Ledger(path, SETTINGS)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("x.jsonl.gz", "without that ending"),
        (".", "is a folder: name a file"),
        ("nowhere/x.jsonl", "there is no folder"),
        ("mine.jsonl", "exists already: name another file, or remove it"),
    ],
)
def test_what_cannot_be_written_is_said(tmp_path: Path, name: str, sentence: str) -> None:
    (tmp_path / "mine.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=sentence):
        Ledger(tmp_path / name, SETTINGS)
    assert (tmp_path / "mine.jsonl").read_text() == "{}\n"
