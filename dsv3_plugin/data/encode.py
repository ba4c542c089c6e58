"""Encoding documents: text in, token ids out, in order, on threads or on processes.

Of the documents that are not held out a share is cut for fill-in-the-middle on the way.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from queue import SimpleQueue
from typing import NamedTuple

import numpy
import tokenizers

from dsv3_plugin.data import fim
from dsv3_plugin.data.encoding_process import EncodingProcess
from dsv3_plugin.data.forms import Span
from dsv3_plugin.data.tokenizer import encode_texts

# Documents are encoded in batches of about this many characters: enough for many threads, few
# enough to bound memory.
_BATCH_CHARACTERS = 1_000_000


class Text(NamedTuple):
    """A document to encode; see `corpus.Document` for its kind and spans."""

    text: str
    kind: str
    is_held_out: bool
    name: str = ""
    spans: tuple[Span, ...] | None = None


@dataclass(frozen=True)
class EncodedDocument:
    """A document's token ids and where it belongs.

    Attributes:
        ids: with the end-of-document token; a conversation ends as its template ends it.
        learned: uint8 `[tokens]`, 1 where a token is learned; None: all are.
        name: where it came from, see `corpus.Document`.
        is_cut: whether it goes on; that much of it is longer than it may be already.
    """

    ids: numpy.ndarray
    kind: str
    is_held_out: bool
    is_fim: bool
    learned: numpy.ndarray | None = None
    name: str = ""
    is_cut: bool = False


@dataclass(frozen=True)
class Encoder:
    """All that turns a text into token ids; it travels to worker processes.

    Held-out documents are never cut for FIM, so that held-out losses of different rates compare.

    Attributes:
        longest: tokens of a conversation at the most; None: as many as there are.
    """

    backend: tokenizers.Tokenizer
    eos_id: int
    sentinels: fim.Sentinels | None
    fim_rate: float
    seed: int
    longest: int | None = None

    def encode(self, documents: Sequence[Text]) -> list[EncodedDocument]:
        """Encode documents, in order."""
        if documents and documents[0].spans is not None:
            return self._conversations(documents)
        pieces = [self._pieces(document) for document in documents]
        ids = iter(encode_texts(self.backend, list(itertools.chain.from_iterable(pieces))))
        encoded = []
        for document, parts in zip(documents, pieces, strict=True):
            is_fim = len(parts) == 3
            if is_fim:
                tokens = fim.join(next(ids), next(ids), next(ids), self.sentinels)
            else:
                tokens = next(ids)
            array = numpy.array([*tokens, self.eos_id], dtype=numpy.int32)
            encoded.append(EncodedDocument(array, document.kind, document.is_held_out, is_fim))
        return encoded

    def _conversations(self, documents: Sequence[Text]) -> list[EncodedDocument]:
        """What a template wrote, special tokens where it spells them, and nothing added.

        A token is learned that is a span's at least in part, as transformers marks it. Of a text
        with more characters than as many tokens as it may have can stand for, the rest is not
        encoded.
        """
        self.backend.encode_special_tokens = False  # not part of what is saved or pickled
        most = self._most_characters
        texts = [document.text[:most] for document in documents]
        encoded = []
        for document, encoding in zip(
            documents, self.backend.encode_batch(texts, add_special_tokens=False), strict=True
        ):
            is_cut = most is not None and len(document.text) > most
            if is_cut and len(encoding) <= self.longest:  # it stands for more, or drops some
                encoding, is_cut = (
                    self.backend.encode(document.text, add_special_tokens=False),
                    False,
                )
            begins, ends = numpy.array(encoding.offsets, dtype=numpy.int64).reshape(-1, 2).T
            learned = numpy.zeros(len(begins), dtype=numpy.uint8)
            for begin, end in document.spans or ():
                learned[(ends > begin) & (begins < end)] = 1
            ids = numpy.array(encoding.ids, dtype=numpy.int32)
            encoded.append(
                EncodedDocument(
                    ids,
                    document.kind,
                    document.is_held_out,
                    is_fim=False,
                    learned=learned,
                    name=document.name,
                    is_cut=is_cut,
                )
            )
        return encoded

    @cached_property
    def _most_characters(self) -> int | None:
        """Of a text that may be short enough, or is encoded at once with others anyway."""
        if self.longest is None:
            return None
        of_token = max(map(len, self.backend.get_vocab(with_added_tokens=True)))
        return max((self.longest + 1) * of_token, _BATCH_CHARACTERS)

    def _pieces(self, document: Text) -> tuple[str, ...]:
        if document.is_held_out or not self.sentinels:
            return (document.text,)
        return fim.cut(document.text, rate=self.fim_rate, seed=self.seed) or (document.text,)


def encode_documents(
    encoder: Encoder, documents: Iterable[Text], workers: int
) -> Iterator[EncodedDocument]:
    """Encode a stream of documents, in order, with few of them in memory."""
    batches = _batches(documents)
    if workers <= 1:
        for batch in batches:
            yield from encoder.encode(batch)
        return
    processes = [EncodingProcess[Text, EncodedDocument](encoder) for _ in range(workers)]
    idle: SimpleQueue[EncodingProcess[Text, EncodedDocument]] = SimpleQueue()
    for process in processes:
        idle.put(process)

    def encoded(batch: list[Text]) -> list[EncodedDocument]:
        process = idle.get()
        try:
            return process.encode(batch)
        finally:
            idle.put(process)

    threads = ThreadPoolExecutor(workers)  # one waits for each process
    try:
        waiting: deque[Future[list[EncodedDocument]]] = deque()
        for batch in batches:
            waiting.append(threads.submit(encoded, batch))
            if len(waiting) > 2 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)
        for process in processes:
            process.end()


def _batches(documents: Iterable[Text]) -> Iterator[list[Text]]:
    batch: list[Text] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
