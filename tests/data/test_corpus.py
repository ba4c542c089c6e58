"""Corpora: what is read, in which order, and what is left out."""

import os
import sysconfig
from pathlib import Path

import pytest

from dsv3_plugin.data.corpus import Source, file_signature, find_sources
from dsv3_plugin.data.documents import read_documents
from dsv3_plugin.data.forms import TextForm
from dsv3_plugin.data.left_out import Tally
from dsv3_plugin.errors import UserError


def texts(corpus, text_key="text"):
    return [document.text for document in read_documents(find_sources(corpus), TextForm(text_key))]


def test_standard_library_is_a_corpus_of_its_source_files():
    sources = find_sources("stdlib")
    names = [source.name for source in sources]
    root = Path(sysconfig.get_path("stdlib"))

    assert len(names) == len(set(names))
    assert {"argparse.py", "json/decoder.py", "collections/__init__.py"} <= set(names)
    assert not [name for name in names if "site-packages" in name or "test" in name.split("/")]
    assert find_sources("stdlib") == sources
    by_name = {document.name: document.text for document in read_documents(sources)}
    assert by_name["argparse.py"] == (root / "argparse.py").read_bytes().decode()
    assert 8e6 < sum(len(text.encode()) for text in by_name.values()) < 40e6


def test_a_folder_is_read_in_order_of_names_without_hidden_files(tmp_path):
    for name in ("b.txt", "a/2.md", "a/1.txt", ".hidden", ".git/config", "c"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)

    assert texts(tmp_path) == ["b.txt", "c", "a/1.txt", "a/2.md"]
    assert [source.name for source in find_sources(tmp_path)][:1] == [f"{tmp_path.name}/b.txt"]


def test_a_missing_or_empty_corpus_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no/such.*does not exist"):
        find_sources(tmp_path / "no/such")
    with pytest.raises(UserError, match="holds no files"):
        find_sources(tmp_path)


def test_a_file_that_vanished_is_named(tmp_path):
    gone = [Source(tmp_path / "gone.txt", "gone.txt", "text")]
    with pytest.raises(UserError, match=r"cannot read .*gone.txt"):
        list(read_documents(gone))
    with pytest.raises(UserError, match=r"cannot read .*gone.txt"):
        file_signature(gone)


def test_signature_tells_whether_files_changed(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = file_signature(find_sources(tmp_path))

    assert file_signature(find_sources(tmp_path)) == before
    path.write_text("other")
    assert file_signature(find_sources(tmp_path)) != before


def left_out_of(corpus) -> dict[str, int]:
    tally = Tally()
    find_sources(corpus, left_out=tally)
    return {f"{of.things}: {', '.join(of.examples)}": of.count for of in tally.all()}


def test_what_is_about_the_rows_is_no_document(tmp_path):
    rows = '{"text": "a document"}\n'
    for name, content in {
        "README.md": "# card",
        "LICENSE": "free",
        "script.py": "load()",
        "dataset_infos.json": "{}",
        "data/train.jsonl": rows,
        "data/README.txt": "card",
        "data/extra.txt": "a document",
        "books/README.md": "a document",  # no rows here: all that is known is that it is text
    }.items():
        path = tmp_path / "c" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    assert texts(tmp_path / "c") == ["a document"] * 3
    about = "c/LICENSE, c/README.md, c/script.py"
    assert left_out_of(tmp_path / "c") == {
        f"files: {about}": 4,
        "files: c/dataset_infos.json": 1,
    }
    assert texts(tmp_path / "c/README.md") == ["# card"]  # it is named


def test_a_readme_beside_data_that_is_not_read_is_no_corpus(tmp_path):
    (tmp_path / "README.md").write_text("# card")
    (tmp_path / "data.csv").write_text("text\nx\n")
    with pytest.raises(UserError, match=r"no files that are read: .*CSV table.*data.csv"):
        find_sources(tmp_path)
    with pytest.raises(UserError, match=r"it is a CSV table, save its rows"):
        find_sources(tmp_path / "data.csv")


def test_links_hidden_and_special_files_are_counted(tmp_path):
    corpus, elsewhere = tmp_path / "c", tmp_path / "elsewhere"
    (corpus / ".git").mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "b.txt").write_text("through a link")
    (corpus / "a.txt").symlink_to(elsewhere / "b.txt")
    (corpus / "more").symlink_to(elsewhere)
    (corpus / "again").symlink_to(corpus)
    (corpus / ".hidden").write_text("hidden")
    os.mkfifo(corpus / "pipe")

    assert texts(corpus) == ["through a link"]
    assert left_out_of(corpus) == {
        "folders: c/.git": 1,
        "folders: c/again, c/more": 2,
        "files: c/.hidden": 1,
        "files: c/pipe": 1,
    }
    (corpus / "gone.txt").symlink_to(elsewhere / "gone.txt")
    with pytest.raises(UserError, match=r"cannot read .*gone.txt: it is a link to .*gone.txt,"):
        find_sources(corpus)
    tally = Tally()
    (source,) = find_sources(corpus, left_out=tally, on_bad_row="skip")
    assert source.name == "c/a.txt"
    assert "1 file: links to what is not there (c/gone.txt)" in str(tally)


def test_signature_tells_what_is_left_out(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    signatures = set()
    for name in ("b.csv", "c.csv"):
        tally = Tally()
        signatures.add(file_signature(find_sources(tmp_path, left_out=tally), tally.all()))
        (tmp_path / name).write_text("text\n")
    assert len(signatures) == 2
