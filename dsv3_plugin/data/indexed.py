"""Documents in upstream's indexed format: written, the held-out ones apart, and read back."""

import contextlib
import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

from dsv3_plugin.data.dataset_folder import HELD_OUT, TRAIN, Dataset, Part, learned_prefix
from dsv3_plugin.data.dataset_tokenizer import tokenizer_of
from dsv3_plugin.data.encode import EncodedDocument
from dsv3_plugin.errors import UserError


def write_parts(
    folder: Path, documents: Iterable[EncodedDocument], tokenizer_size: int
) -> tuple[int, Part, Part]:
    """Write `train` and `held_out` into a folder; a part without documents leaves no files.

    Returns:
        The bytes of a token (2 where every id fits, else 4), and what the two parts hold.
    """
    dtype = DType.optimal_dtype(tokenizer_size)
    with contextlib.ExitStack() as files:
        train = _PartWriter(folder / TRAIN, dtype)
        files.callback(train.close)
        held_out = _PartWriter(folder / HELD_OUT, dtype)
        files.callback(held_out.close)
        for document in documents:
            (held_out if document.is_held_out else train).add(document)
        return DType.size(dtype), train.finish(), held_out.finish()


def decode_document(dataset: Dataset, document: int, tokens: int) -> str:
    """The first tokens of a training document as text, special tokens spelled out.

    Raises:
        UserError: no such document, one of other tokens than the tokenizer's, or another tokenizer.
    """
    documents = dataset.manifest.train.documents
    if not 0 <= document < documents:
        raise UserError(
            f"{dataset.folder} has training documents 0 to {documents - 1}, not {document}."
        )
    # Its arrays are views of a mapping that goes when it does: hold on to it until they are copied.
    indexed = IndexedDataset(str(dataset.train_prefix))
    ids = indexed[document][:tokens].tolist()
    tokenizer = tokenizer_of(dataset)
    if not all(0 <= token < tokenizer.most_tokens for token in ids):
        raise UserError(
            f"document {document} of {dataset.folder} has tokens that its tokenizer has not: build "
            "the dataset again."
        )
    return tokenizer.decode(ids)


class _PartWriter:
    """One of the two parts while it is written; an empty one leaves no file."""

    def __init__(self, prefix: Path, dtype: type) -> None:
        self._prefix = prefix
        self._builder = IndexedDatasetBuilder(str(prefix.with_suffix(".bin")), dtype=dtype)
        self._learned: _PartWriter | None = None
        self._documents = self._fim_documents = self._tokens = 0

    def add(self, document: EncodedDocument) -> None:
        self._builder.add_document(document.ids, [len(document.ids)])
        if document.learned is not None:
            if self._learned is None:
                self._learned = _PartWriter(learned_prefix(self._prefix), numpy.uint8)
            self._learned.add(dataclasses.replace(document, ids=document.learned, learned=None))
        self._documents += 1
        self._fim_documents += document.is_fim
        self._tokens += len(document.ids)

    def finish(self) -> Part:
        self._builder.finalize(str(self._prefix.with_suffix(".idx")))
        if self._learned is not None:
            self._learned.finish()
        if not self._documents:
            self._prefix.with_suffix(".bin").unlink()
            self._prefix.with_suffix(".idx").unlink()
        return Part(
            documents=self._documents, fim_documents=self._fim_documents, tokens=self._tokens
        )

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a full disk was reported already
            self._builder.data_file.close()
        if self._learned is not None:
            self._learned.close()
