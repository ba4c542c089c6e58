"""Encoded corpora as datasets: every document on one side, the tokens where they were."""

import os
import tempfile
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

from dsv3_plugin.data.dataset_folder import find_dataset, open_dataset
from dsv3_plugin.data.link_indexed import link_indexed
from dsv3_plugin.data.tokenizer import open_tokenizer, train_bpe
from dsv3_plugin.errors import UserError

EOS = 1


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(["some words"], 300, folder)
    return open_tokenizer(folder)


def encoded(prefix: Path, documents, dtype=numpy.uint16) -> Path:
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for ids in documents:
        builder.add_document(ids, [len(ids)])
    builder.finalize(f"{prefix}.idx")
    return prefix


def read(prefix: Path) -> list[tuple[int, ...]]:
    indexed = IndexedDataset(str(prefix))
    return [tuple(indexed[i].tolist()) for i in range(len(indexed))]


DOCUMENTS = [[10 + i, 20 + i % 7, EOS] for i in range(40)]


@pytest.fixture
def prefix(tmp_path):
    return encoded(tmp_path / "enc.v1", DOCUMENTS)


@settings(max_examples=40, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(0, 200), max_size=4), min_size=2, max_size=30).filter(
        lambda them: len({tuple(ids) for ids in them if ids}) > 1
    ),
    share=st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    dtype=st.sampled_from([numpy.uint8, numpy.int16, numpy.uint16, numpy.int32, numpy.int64]),
)
def test_every_document_stands_on_one_side(tokenizer, documents, share, dtype):
    with tempfile.TemporaryDirectory() as folder:
        prefix = encoded(Path(folder) / "enc", documents, dtype)
        dataset = link_indexed(prefix, tokenizer, Path(folder) / "out", held_out=share)
        train = read(dataset.train_prefix)
        held_out = read(dataset.held_out_prefix) if dataset.held_out_prefix else []
        assert train
        assert not set(train) & set(held_out)
        assert bool(held_out) == (share > 0)
        in_order = [tuple(ids) for ids in documents if ids]
        assert [ids for ids in in_order if ids in set(train)] == train
        assert [ids for ids in in_order if ids in set(held_out)] == held_out
        parts = [dataset.manifest.train, dataset.manifest.held_out]
        assert sum(part.tokens for part in parts if part) == sum(map(len, documents))


def test_the_tokens_stay_where_they_are(tokenizer, prefix, tmp_path):
    dataset = link_indexed(prefix, tokenizer, tmp_path / "out", held_out=0.2)
    for part in (dataset.train_prefix, dataset.held_out_prefix):
        assert part.with_suffix(".bin").resolve() == Path(f"{prefix}.bin")
    assert dataset.manifest.corpus.without_end == 0
    assert link_indexed(prefix, tokenizer, tmp_path / "out", held_out=0.2) == dataset


def test_documents_without_an_end_are_counted(tokenizer, tmp_path):
    prefix = encoded(tmp_path / "enc", [[5, 6], [7, EOS], [8]])
    dataset = link_indexed(prefix, tokenizer, tmp_path / "out", held_out=0.0)
    assert dataset.manifest.corpus.without_end == 2


def test_touched_files_are_the_same_dataset_and_other_tokens_are_not(tokenizer, prefix, tmp_path):
    out = tmp_path / "out"
    dataset = link_indexed(prefix, tokenizer, out, held_out=0.2)
    os.utime(f"{prefix}.bin", ns=(1, 1))
    assert link_indexed(prefix, tokenizer, out, held_out=0.2) == dataset
    encoded(prefix, [[ids[0], 99, EOS] for ids in DOCUMENTS])
    with pytest.raises(UserError, match="from another corpus than is asked for now"):
        link_indexed(prefix, tokenizer, out, held_out=0.2, replace=False)
    again = link_indexed(prefix, tokenizer, out, held_out=0.2)
    assert again.fingerprint != dataset.fingerprint


@pytest.mark.parametrize(("token", "dtype"), [(300, numpy.uint16), (-1, numpy.int32)])
def test_tokens_that_the_tokenizer_has_not(tokenizer, tmp_path, token, dtype):
    prefix = encoded(tmp_path / "enc", [[5, EOS], [token, EOS]], dtype)
    with pytest.raises(UserError, match=rf"enc.bin: document 1 has token {token}, and tokenizer"):
        link_indexed(prefix, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_file_of_two(tokenizer, prefix, tmp_path):
    Path(f"{prefix}.idx").unlink()
    with pytest.raises(UserError, match=r"enc.v1.idx is not there \(enc.v1.bin is there alone\)"):
        link_indexed(prefix, tokenizer, tmp_path / "out")


def test_fewer_tokens_than_the_index_says(tokenizer, prefix, tmp_path):
    data = Path(f"{prefix}.bin")
    data.write_bytes(data.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"enc\.v1\.idx does not describe enc\.v1\.bin"):
        link_indexed(prefix, tokenizer, tmp_path / "out")


def test_no_tokens_at_all(tokenizer, tmp_path):
    prefix = encoded(tmp_path / "enc", [[]])
    with pytest.raises(UserError, match="enc is empty"):
        link_indexed(prefix, tokenizer, tmp_path / "out")


def test_tokens_that_have_gone_or_shrunk_since(tokenizer, prefix, tmp_path):
    out = tmp_path / "out"
    link_indexed(prefix, tokenizer, out)
    data = Path(f"{prefix}.bin")
    for change in (lambda: data.write_bytes(data.read_bytes()[:-2]), data.unlink):
        change()
        assert find_dataset(out) is None
        with pytest.raises(UserError, match=r"enc.v1.bin, which .*train.bin leads to, has"):
            open_dataset(out)
