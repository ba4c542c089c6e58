"""`dsv3 init`."""

import pytest


@pytest.mark.parametrize("there", [True, False])
def test_a_corpus_that_is_not_there_is_minded(dsv3, there, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if there:
        (tmp_path / "texts").mkdir()
    said = dsv3("init", "mine", "--corpus", "texts")
    assert said.code == 0
    assert (tmp_path / "mine.yaml").is_file()
    assert ("Note: data.corpus: texts does not exist in" in said.err) != there


@pytest.mark.parametrize("name", [".", "..", "", " ", ".yaml", "in/.yml", "runs/"])
def test_a_name_that_is_no_files_is_refused(dsv3, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = dsv3("init", name)
    assert (said.code, said.err) == (2, f"dsv3: '{name}' names no file: write NAME or NAME.yaml.\n")
    assert not [*tmp_path.iterdir()]


def test_a_file_is_named_as_a_shell_takes_it_and_told_from_what_ships(dsv3, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = dsv3("init", "my recipe")
    assert said.out.startswith("my recipe.yaml is written: `dsv3 train 'my recipe.yaml' --dry-run`")
    assert "alone names" not in said.err
    for name, kind in (("deepseek-v3", "models"), ("pretrain/tiny", "recipes")):
        assert (
            f"Note: {name} alone names the one of the {kind} that comes with dsv3, and {name}.yaml "
            "yours: write it with its suffix, or take another name."
        ) in dsv3("init", name).err
