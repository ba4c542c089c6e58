"""Real text for haystacks: what a run held out, or a corpus."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron.core.datasets.indexed_dataset import IndexedDataset

from dsv3_plugin.data.corpus import STDLIB, find_sources
from dsv3_plugin.data.dataset_folder import MANIFEST, Dataset, open_dataset
from dsv3_plugin.data.dataset_tokenizer import tokenizer_of
from dsv3_plugin.data.documents import read_documents
from dsv3_plugin.evaluation.checkpoint import Coder, Place
from dsv3_plugin.evaluation.haystack import Haystack
from dsv3_plugin.files.named import named
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.recipe import yaml_text


@dataclass(frozen=True)
class Texts:
    """Documents in an order that a seed decides.

    Attributes:
        name: what they are, for sentences.
        documents: their texts.
    """

    name: str
    documents: Iterable[str]

    def haystack(self, coder: Coder, most: int) -> Haystack:
        """Their first tokens, one document after the other, so many or a few more."""
        tokens: list[int] = []
        for text in self.documents:
            tokens += coder.encode(text if text.endswith("\n") else f"{text}\n")
            if len(tokens) >= most:
                break
        return Haystack(self.name, tokens, coder, coder.begin)


def texts_for(place: Place, corpus: str | None, seed: int) -> Texts:
    """What real text a checkpoint's facts are laid into.

    Args:
        place: of the checkpoint.
        corpus: `stdlib`, a file or a folder; None: what the run kept from training, or else stdlib.
        seed: of the documents' order; a file's stay in theirs.

    Raises:
        UserError: there is no such corpus, or it or the run's dataset cannot be read.
    """
    draw = random.Random(seed)
    if corpus is None and place.run is not None:
        folder = data_folder(place.run)
        dataset = open_dataset(folder) if (folder / MANIFEST).exists() else None
        if dataset is not None and dataset.held_out_prefix is not None:
            return Texts(f"the held-out part of {folder}", _held_out(dataset, draw))
    sources = find_sources(corpus or STDLIB)
    draw.shuffle(sources)
    return Texts(corpus or STDLIB, (document.text for document in read_documents(sources)))


def data_folder(run: RunFolder) -> Path:
    """Where a run has its dataset, wherever its own folder is by now."""
    data = yaml_text.read_mapping(run.recipe).get("data")
    path = data.get("path") if isinstance(data, dict) else None
    return named(path) if isinstance(path, str) else run.root / "data"


def _held_out(dataset: Dataset, draw: random.Random) -> Iterator[str]:
    tokenizer = tokenizer_of(dataset)
    documents = IndexedDataset(str(dataset.held_out_prefix))
    for number in draw.sample(range(len(documents)), len(documents)):
        tokens = documents[number].tolist()
        yield tokenizer.decode([token for token in tokens if token != tokenizer.eos_id])
