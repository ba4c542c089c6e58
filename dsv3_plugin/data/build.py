"""Building a dataset: documents in, upstream's indexed format out.

Documents are told apart by an end-of-document token and by upstream's index; a part of them, chosen
by the hash of their text, is held out; of the rest a share is cut for fill-in-the-middle. The
result depends on the texts, the tokenizer and the settings alone, so a second call with the same
ones finds the first one's result and reuses it.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsv3_plugin.data.corpus import (
    Document,
    Source,
    corpus_names,
    file_signature,
    find_sources,
)
from dsv3_plugin.data.dataset_folder import (
    MANIFEST,
    TOKENIZER,
    CorpusFacts,
    Dataset,
    KindFacts,
    Manifest,
    Settings,
    TokenizerFacts,
    find_dataset,
    open_dataset,
)
from dsv3_plugin.data.documents import SKIP, read_documents
from dsv3_plugin.data.encode import EncodedDocument, Encoder, Text, encode_documents
from dsv3_plugin.data.forms import TEXT, Form
from dsv3_plugin.data.left_out import CANNOT_BE_READ, ROWS, Tally
from dsv3_plugin.data.place import check_place, gives_way, sole_builder, write_errors
from dsv3_plugin.data.progress import Progress, counted, silent
from dsv3_plugin.data.survey import Survey, document_hash, held_out_below, refuse_share, survey
from dsv3_plugin.data.tokenizer import (
    TextTokenizer,
    TrainBpe,
    open_tokenizer,
    train_bpe,
)
from dsv3_plugin.data.tokenizer_folder import copy_tokenizer
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.folders import whole_folder
from dsv3_plugin.recipe.sections import OnBadRow
from dsv3_plugin.terminal.lines import note


def build_dataset(
    corpus: str | Path | Sequence[str | Path],
    tokenizer: TrainBpe | TextTokenizer,
    out_dir: Path,
    *,
    held_out: float = 0.01,
    fim_rate: float = 0.0,
    seed: int = 1234,
    form: Form = TEXT,
    longest: int | None = None,
    on_bad_row: OnBadRow = "stop",
    workers: int = 1,
    replace: bool = True,
    accept: Callable[[TextTokenizer], None] | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> Dataset:
    """Build the dataset `out_dir`, or reuse it when it is already the one asked for.

    Args:
        corpus: what `dsv3_plugin.data.corpus.find_sources` takes.
        tokenizer: an open one, or a BPE to train on the documents that are not held out.
        out_dir: the folder, complete or absent at any moment.
        held_out: fraction of the documents kept from training, in [0, 1).
        fim_rate: share of the other documents cut for fill-in-the-middle, in [0, 1].
        seed: of the FIM cuts.
        form: of rows.
        longest: tokens of a conversation at the most; a longer one is a bad row.
        on_bad_row: whether a row that cannot be read stops the building, or is left out.
        workers: processes that encode; 1 leaves it to the threads of the tokenizers library.
        replace: whether another dataset in `out_dir` gives way to this one.
        accept: looks at the tokenizer before a document is encoded; it may raise UserError.
        progress: told after every document.
        tell: takes a sentence for the person meanwhile; None: it goes to standard error.

    Raises:
        UserError: for a corpus, tokenizer, setting or place that does not do.
    """
    if not 0 <= fim_rate <= 1:
        raise UserError(f"fim_rate is {fim_rate}: give a share of the documents in [0, 1].")
    refuse_share(held_out)
    settings = settings_of(
        tokenizer, held_out=held_out, fim_rate=fim_rate, seed=seed, form=form, longest=longest
    )
    left_out = Tally()
    sources = find_sources(corpus, form, left_out, on_bad_row)
    rows = _Rows(sources, form, longest, on_bad_row, left_out)
    progress = progress or silent
    with sole_builder(out_dir, tell or note):
        signature = file_signature(sources, left_out.all())
        present = find_dataset(out_dir)
        reusable = present if present and present.manifest.settings == settings else None
        if (
            reusable
            and reusable.manifest.corpus.file_signature == signature
            and (on_bad_row == "skip" or not _skipped_rows(reusable))
        ):
            return reusable

        reading = counted(rows.documents(), progress, "Reading the corpus", None)
        found = survey(reading, left_out, corpus_names(corpus))
        if (
            reusable
            and reusable.manifest.corpus.digest == found.digest
            and (on_bad_row == "skip" or not _skipped_rows(reusable))
        ):
            # The files were touched, or stand elsewhere; the texts are the same.
            return _with_left_out(reusable, left_out)
        with write_errors(out_dir):
            check_place(out_dir, present, settings, replace)
            if sentence := gives_way(out_dir, present, settings, corpus_names(corpus)):
                (tell or note)(sentence)
        facts = CorpusFacts(
            named=corpus_names(corpus),
            file_signature=signature,
            digest=found.digest,
            documents=found.documents,
            bytes=found.bytes,
            left_out=left_out.all(),
        )
        with write_errors(out_dir), whole_folder(out_dir) as folder:
            _build(folder, rows, tokenizer, settings, facts, found, workers, accept, progress)
    return open_dataset(out_dir)


def _skipped_rows(dataset: Dataset) -> bool:
    return any(things.things == ROWS for things in dataset.manifest.corpus.left_out)


def _with_left_out(dataset: Dataset, left_out: Tally) -> Dataset:
    """The dataset as it is, and what is left out of its corpus as that is now."""
    manifest = dataset.manifest
    found_in_encoding = [
        things
        for things in manifest.corpus.left_out
        if things.things == ROWS and things.why != CANNOT_BE_READ
    ]
    corpus = manifest.corpus.model_copy(update={"left_out": (*left_out.all(), *found_in_encoding)})
    return dataclasses.replace(dataset, manifest=manifest.model_copy(update={"corpus": corpus}))


def settings_of(
    tokenizer: TrainBpe | TextTokenizer,
    *,
    held_out: float,
    fim_rate: float,
    seed: int,
    form: Form,
    longest: int | None = None,
) -> Settings:
    """What a dataset's manifest records of a call of `build_dataset`."""
    return Settings(
        tokenizer=str(tokenizer) if isinstance(tokenizer, TrainBpe) else tokenizer.digest,
        held_out=held_out,
        fim_rate=fim_rate,
        seed=seed,
        longest=longest,
        **form.settings,
    )


@dataclass(frozen=True)
class _Rows:
    """What is read, and what is done about a bad row."""

    sources: list[Source]
    form: Form
    longest: int | None
    on_bad_row: OnBadRow
    left_out: Tally

    def documents(self) -> Iterator[Document]:
        """The documents, for the first time."""
        return read_documents(
            self.sources, self.form, on_bad_row=self.on_bad_row, left_out=self.left_out
        )

    def again(self) -> Iterator[Document]:
        """The same; whatever is to stop the building has stopped it the first time."""
        return read_documents(self.sources, self.form, on_bad_row="skip")

    def fitting(self, encoded: Iterable[EncodedDocument]) -> Iterator[EncodedDocument]:
        """Those that are no longer than they may be."""
        for document in encoded:
            length, longest = len(document.ids), self.longest
            has = f"{document.name} has {'over ' * document.is_cut}{length:,}"
            if longest is None or 0 < length <= longest:
                yield document
            elif self.on_bad_row == "skip":
                why = f"longer than a sequence of {longest:,} tokens" if length else "no tokens"
                self.left_out.add(ROWS, why, has)
            elif not length:
                raise UserError(f"{document.name} is no token of this tokenizer's; {SKIP}.")
            else:
                raise UserError(
                    f"{has} tokens, more than a sequence of {longest:,}: "
                    f"raise data.seq_length; {SKIP}."
                )


def _build(
    folder: Path,
    rows: _Rows,
    tokenizer: TextTokenizer | TrainBpe,
    settings: Settings,
    corpus: CorpusFacts,
    found: Survey,
    workers: int,
    accept: Callable[[TextTokenizer], None] | None,
    progress: Progress,
) -> None:
    bound = held_out_below(found, settings.held_out)
    if isinstance(tokenizer, TrainBpe):
        phase = f"Training a tokenizer of {tokenizer.vocab_size} tokens"
        texts = (
            document.text
            for document in counted(rows.again(), progress, phase, found.documents)
            if document_hash(document) >= bound
        )
        train_bpe(texts, tokenizer.vocab_size, folder / TOKENIZER)
        tokenizer = open_tokenizer(folder / TOKENIZER)
    else:
        copy_tokenizer(tokenizer.folder, folder / TOKENIZER)
    for name, text in rows.form.tokenizer_files.items():
        (folder / TOKENIZER / name).write_text(text, encoding="utf-8")
    if accept is not None:
        accept(tokenizer)

    from dsv3_plugin.data.indexed import write_parts  # megatron and torch, seconds to import

    encoder = Encoder(
        backend=tokenizer.backend,
        eos_id=tokenizer.eos_id,
        sentinels=tokenizer.sentinels if settings.fim_rate else None,
        fim_rate=settings.fim_rate,
        seed=settings.seed,
        longest=rows.longest,
    )
    encoded = encode_documents(
        encoder,
        (
            Text(
                document.text,
                document.kind,
                document_hash(document) < bound,
                document.name,
                document.spans,
            )
            for document in rows.again()
        ),
        workers,
    )
    tokens_of_kind: Counter[str] = Counter()
    token_bytes, train, held_out = write_parts(
        folder,
        counted(
            _with_tokens_counted(rows.fitting(encoded), tokens_of_kind),
            progress,
            "Encoding documents",
            found.documents,
        ),
        tokenizer.most_tokens,
    )
    if rows.longest is not None and not train.documents:
        raise UserError(
            f"no conversation is left to train on ({rows.left_out}): raise data.seq_length, or "
            "take more of them."
        )
    manifest = Manifest(
        settings=settings,
        corpus=corpus.model_copy(
            update={
                "kinds": _kinds(rows.sources, found.of_kind, tokens_of_kind),
                "left_out": rows.left_out.all(),
            }
        ),
        tokenizer=TokenizerFacts(
            digest=tokenizer.digest, size=tokenizer.most_tokens, eos_id=tokenizer.eos_id
        ),
        token_bytes=token_bytes,
        train=train,
        held_out=held_out if held_out.documents else None,
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _with_tokens_counted(
    documents: Iterable[EncodedDocument], tokens_of_kind: Counter[str]
) -> Iterator[EncodedDocument]:
    for document in documents:
        tokens_of_kind[document.kind] += len(document.ids)
        yield document


def _kinds(
    sources: Iterable[Source], documents: Mapping[str, int], tokens: Mapping[str, int]
) -> tuple[KindFacts, ...]:
    files = Counter(source.kind for source in sources)
    return tuple(
        KindFacts(
            kind=kind, files=count, documents=documents.get(kind, 0), tokens=tokens.get(kind, 0)
        )
        for kind, count in sorted(files.items())
    )
