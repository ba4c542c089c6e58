"""Building a dataset: documents in, upstream's indexed format out.

Documents are told apart by an end-of-document token and by upstream's index; a part of them, chosen
by the hash of their text, is held out; of the rest a share is cut for fill-in-the-middle. The
result depends on the texts, the tokenizer and the settings alone, so a second call with the same
ones finds the first one's result and reuses it.
"""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    OWN_NAMES,
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
from dsv3_plugin.data.documents import read_documents
from dsv3_plugin.data.encode import EncodedDocument, Encoder, Text, encode_documents
from dsv3_plugin.data.left_out import CANNOT_BE_READ, Tally
from dsv3_plugin.data.survey import Survey, document_hash, held_out_below, survey
from dsv3_plugin.data.tokenizer import (
    TextTokenizer,
    TrainBpe,
    open_tokenizer,
    train_bpe,
)
from dsv3_plugin.data.tokenizer_folder import copy_tokenizer
from dsv3_plugin.errors import UserError
from dsv3_plugin.files import locks
from dsv3_plugin.files.folders import whole_folder
from dsv3_plugin.files.full_disk import write_errors_as
from dsv3_plugin.recipe.sections import OnBadRow
from dsv3_plugin.terminal.lines import note

Progress = Callable[[str, int, int | None], None]
"""Called with a phase of the work, its documents done, and those in all where that is known."""


def build_dataset(
    corpus: str | Path | Sequence[str | Path],
    tokenizer: TrainBpe | TextTokenizer,
    out_dir: Path,
    *,
    held_out: float = 0.01,
    fim_rate: float = 0.0,
    seed: int = 1234,
    text_key: str = "text",
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
        text_key: key (JSON) or column (parquet) of the text.
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
    if not 0 <= held_out < 1:
        raise UserError(f"held_out is {held_out}: give a fraction of the documents in [0, 1).")
    settings = settings_of(
        tokenizer, held_out=held_out, fim_rate=fim_rate, seed=seed, text_key=text_key
    )
    left_out = Tally()
    sources = find_sources(corpus, text_key, left_out)
    progress = progress or _silent
    with _sole_builder(out_dir, tell or note):
        signature = file_signature(sources, left_out.all())
        present = find_dataset(out_dir)
        reusable = present if present and present.manifest.settings == settings else None
        if (
            reusable
            and reusable.manifest.corpus.file_signature == signature
            and (on_bad_row == "skip" or not _skipped_rows(reusable))
        ):
            return reusable

        documents = read_documents(sources, text_key, on_bad_row=on_bad_row, left_out=left_out)
        found = survey(_counted(documents, progress, "Reading the corpus", None), left_out)
        if reusable and reusable.manifest.corpus.digest == found.digest:
            # The files were touched, or stand elsewhere; the texts are the same.
            return _with_left_out(reusable, left_out)
        with _write_errors(out_dir):
            _check_place(out_dir, present, settings, replace)
        facts = CorpusFacts(
            named=corpus_names(corpus),
            file_signature=signature,
            digest=found.digest,
            documents=found.documents,
            bytes=found.bytes,
            left_out=left_out.all(),
        )
        with _write_errors(out_dir), whole_folder(out_dir) as folder:
            _build(folder, sources, tokenizer, settings, facts, found, workers, accept, progress)
    return open_dataset(out_dir)


def _skipped_rows(dataset: Dataset) -> bool:
    return any(things.why == CANNOT_BE_READ for things in dataset.manifest.corpus.left_out)


def _with_left_out(dataset: Dataset, left_out: Tally) -> Dataset:
    """The dataset as it is, and what is left out of its corpus as that is now."""
    manifest = dataset.manifest
    corpus = manifest.corpus.model_copy(update={"left_out": left_out.all()})
    return dataclasses.replace(dataset, manifest=manifest.model_copy(update={"corpus": corpus}))


def settings_of(
    tokenizer: TrainBpe | TextTokenizer,
    *,
    held_out: float,
    fim_rate: float,
    seed: int,
    text_key: str,
) -> Settings:
    """What a dataset's manifest records of a call of `build_dataset`."""
    return Settings(
        tokenizer=str(tokenizer) if isinstance(tokenizer, TrainBpe) else tokenizer.digest,
        held_out=held_out,
        fim_rate=fim_rate,
        seed=seed,
        text_key=text_key,
    )


def _sole_builder(out_dir: Path, tell: Callable[[str], None]) -> locks.FolderLock:
    """Wait until no other process builds beside `out_dir`, and keep others waiting meanwhile.

    Raises:
        UserError: the place cannot be written.
    """
    with _write_errors(out_dir):
        return locks.wait_for(
            out_dir.parent,
            lambda: tell(f"Waiting for another build of a dataset in {out_dir.parent}."),
        )


def _write_errors(out_dir: Path) -> contextlib.AbstractContextManager[None]:
    return write_errors_as(
        lambda reason: (
            f"cannot write {out_dir}: {reason}; make room, or choose another place. Nothing was "
            "changed."
        )
    )


def _check_place(folder: Path, present: Dataset | None, settings: Settings, replace: bool) -> None:
    """Refuse to replace what is not a dataset, and a dataset that must stay."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another folder for the dataset.")
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in OWN_NAMES)
    if foreign:
        raise UserError(
            f"{folder} holds other things than a dataset ({', '.join(foreign[:3])}): choose "
            "another folder."
        )
    if present and not replace:
        raise UserError(
            f"{folder} was built {_difference(present.manifest.settings, settings)}, and it must "
            "not change: restore that, start anew in another folder, or have it replaced (dsv3 "
            "data build --replace)."
        )


def _difference(present: Settings, asked: Settings) -> str:
    other = [
        f"{name} {getattr(present, name)} instead of {value}"
        for name, value in asked
        if getattr(present, name) != value
    ]
    return f"with {', '.join(other)}" if other else "from another corpus than is asked for now"


def _build(
    folder: Path,
    sources: list[Source],
    tokenizer: TextTokenizer | TrainBpe,
    settings: Settings,
    corpus: CorpusFacts,
    found: Survey,
    workers: int,
    accept: Callable[[TextTokenizer], None] | None,
    progress: Progress,
) -> None:
    bound = held_out_below(found, settings.held_out)

    def documents() -> Iterator[Document]:
        # Whatever is to stop the building has stopped the survey.
        return read_documents(sources, settings.text_key, on_bad_row="skip")

    if isinstance(tokenizer, TrainBpe):
        phase = f"Training a tokenizer of {tokenizer.vocab_size} tokens"
        texts = (
            document.text
            for document in _counted(documents(), progress, phase, found.documents)
            if document_hash(document) >= bound
        )
        train_bpe(texts, tokenizer.vocab_size, folder / TOKENIZER)
        tokenizer = open_tokenizer(folder / TOKENIZER)
    else:
        copy_tokenizer(tokenizer.folder, folder / TOKENIZER)
    if accept is not None:
        accept(tokenizer)

    from dsv3_plugin.data.indexed import write_parts  # megatron and torch, seconds to import

    encoder = Encoder(
        backend=tokenizer.backend,
        eos_id=tokenizer.eos_id,
        sentinels=tokenizer.sentinels if settings.fim_rate else None,
        fim_rate=settings.fim_rate,
        seed=settings.seed,
    )
    encoded = encode_documents(
        encoder,
        (
            Text(document.text, document.kind, document_hash(document) < bound)
            for document in documents()
        ),
        workers,
    )
    tokens_of_kind: Counter[str] = Counter()
    token_bytes, train, held_out = write_parts(
        folder,
        _counted(
            _with_tokens_counted(encoded, tokens_of_kind),
            progress,
            "Encoding documents",
            found.documents,
        ),
        tokenizer.most_tokens,
    )
    manifest = Manifest(
        settings=settings,
        corpus=corpus.model_copy(update={"kinds": _kinds(sources, found.of_kind, tokens_of_kind)}),
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


def _counted[T](
    documents: Iterable[T], progress: Progress, phase: str, total: int | None
) -> Iterator[T]:
    """The documents as they come; `progress` is told of each when it has been dealt with."""
    progress(phase, 0, total)
    for done, document in enumerate(documents, 1):
        yield document
        progress(phase, done, total)


def _silent(phase: str, done: int, total: int | None) -> None:
    pass
