"""A hundred and twenty short texts, and what a dataset of them holds on the disk."""

import json
from pathlib import Path

from megatron.core.datasets.indexed_dataset import IndexedDataset

TEXTS = [
    f"Document {i}: {'x' * (i % 7)}\n" + "".join(f"line {j} of {i}\n" for j in range(i % 11))
    for i in range(120)
]


def write_corpus(path: Path, texts) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def read_back(prefix: Path) -> list[list[int]]:
    indexed = IndexedDataset(str(prefix))
    assert list(indexed.document_indices) == list(range(len(indexed) + 1))
    return [indexed[i].tolist() for i in range(len(indexed))]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
