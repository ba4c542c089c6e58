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
