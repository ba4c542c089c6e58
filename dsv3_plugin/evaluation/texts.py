"""Real text for haystacks: what a run held out, or a corpus."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dsv3_plugin.data.corpus import STDLIB, find_sources
from dsv3_plugin.data.dataset_tokenizer import tokenizer_of
from dsv3_plugin.data.documents import read_documents
from dsv3_plugin.evaluation.checkpoint import Coder, Place
from dsv3_plugin.evaluation.haystack import Haystack
from dsv3_plugin.evaluation.held_out import HeldOut, held_out_of


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
    if corpus is None and place.run is not None and (held_out := held_out_of(place.run)):
        return Texts(f"the held-out text of {place.run.root}", _held_out(held_out, draw))
    sources = find_sources(corpus or STDLIB)
    draw.shuffle(sources)
    return Texts(corpus or STDLIB, (document.text for document in read_documents(sources)))


def _held_out(sets: list[HeldOut], draw: random.Random) -> Iterator[str]:
    """The documents of what was held out, mixed."""
    tokenizers = [tokenizer_of(one.dataset) for one in sets]
    parts = [one.tokens.documents for one in sets]
    places = [(of, number) for of, part in enumerate(parts) for number in range(len(part))]
    for of, number in draw.sample(places, len(places)):
        tokens, end = parts[of][number].tolist(), tokenizers[of].eos_id
        yield tokenizers[of].decode([token for token in tokens if token != end])
