"""Where TE's Python is found, and what is said where there is none."""

import re
import sys
from pathlib import Path

import pytest

from dsv3_plugin.rehearsal.te import installed

ROOT = Path(__file__).parents[3]


def _package(folder: Path, version: str) -> Path:
    (folder / "transformer_engine" / "pytorch").mkdir(parents=True)
    (folder / "transformer_engine" / "__init__.py").write_text("")
    metadata = folder / f"transformer_engine-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.4\nName: transformer_engine\nVersion: {version}\n")
    return folder


def test_one_that_is_set_aside_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "path", [])
    assert installed.te_python() is None
    folder = _package(tmp_path / installed.SIDE_FOLDER, "2.20.2")
    assert installed.te_python() == installed.TEPython(folder, "2.20.2")


def test_one_that_is_installed_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    _package(tmp_path / installed.SIDE_FOLDER, "2.20.2")
    whole = _package(tmp_path / "site-packages", "2.20.1")
    monkeypatch.setattr(sys, "path", [str(whole)])
    assert installed.te_python() == installed.TEPython(whole, "2.20.1")


@pytest.mark.parametrize(
    ("version", "says"),
    [
        ("2.20.2", None),
        ("2.20.2+cu13", None),
        ("2.21.0", "of version 2.21.0, and the shapes of its library are those of 2.20.2"),
    ],
)
def test_a_python_of_another_version_is_told_of(tmp_path, version, says):
    finding = installed.of_another_version(installed.TEPython(tmp_path, version))
    if says is None:
        assert finding is None
    else:
        assert says in finding.sentence
        assert not finding.stops


def test_the_way_to_the_version_goes_by_where_the_python_is(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    aside, elsewhere = tmp_path / installed.SIDE_FOLDER, tmp_path / "site-packages"
    way_out = [
        installed.of_another_version(installed.TEPython(folder, "2.21.0")).way_out
        for folder in (aside, elsewhere)
    ]
    assert f"--upgrade --target {aside} transformer-engine==2.20.2" in way_out[0]
    assert way_out[1].startswith("install transformer-engine==2.20.2")


def test_one_version_is_named_everywhere():
    files = ("Makefile", "pyproject.toml", "requirements-te.lock", "requirements-rehearsal.lock")
    named = re.findall(
        r"transformer-engine(?:\[[^]]*\])?==([\d.]+)",
        "".join((ROOT / file).read_text() for file in files) + installed.how_to_get_it(),
    )
    assert len(named) == 4
    assert set(named) == {installed.VERSION}
