"""Building a dataset: documents in, upstream's indexed format out.

Documents are told apart by an end-of-document token and by upstream's index; a part of them, chosen
by the hash of their text, is held out; of the rest a share is cut for fill-in-the-middle. The
result depends on the texts, the tokenizer and the settings alone, so a second call with the same
ones finds the first one's result and reuses it.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from dsv3_plugin.data.corpus import (
    Document,
    Source,
    file_signature,
    find_sources,
    read_documents,
)
from dsv3_plugin.data.dataset_folder import (
    MANIFEST,
    OWN_NAMES,
    TOKENIZER,
    CorpusFacts,
    Dataset,
    Manifest,
    Settings,
    TokenizerFacts,
    find_dataset,
    open_dataset,
)
from dsv3_plugin.data.encode import Encoder, encode_documents
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
from dsv3_plugin.terminal.lines import note

Progress = Callable[[str, int, int | None], None]
"""Called with a phase of the work, its documents done, and those in all where that is known."""


def build_dataset(
    corpus: str | Path | Sequence[str | Path],
    tokenizer: TrainBpe | TextTokenizer,
    out_dir: Path,
    *,
    held_out: float = 0.02,
    fim_rate: float = 0.0,
    seed: int = 1234,
    text_key: str = "text",
    workers: int = 1,
    replace: bool = True,
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
        text_key: key (JSONL) or column (parquet) of the text.
        workers: processes that encode; 1 leaves it to the threads of the tokenizers library.
        replace: whether another dataset in `out_dir` gives way to this one.
        progress: told after every document.
        tell: takes a sentence for the person meanwhile; None: it goes to standard error.

    Raises:
        UserError: for a corpus, tokenizer, setting or place that does not do.
    """
    if not 0 <= fim_rate <= 1:
        raise UserError(f"fim_rate is {fim_rate}: give a share of the documents in [0, 1].")
    sources = find_sources(corpus)
    settings = settings_of(
        tokenizer, held_out=held_out, fim_rate=fim_rate, seed=seed, text_key=text_key
    )
    progress = progress or _silent
    with _sole_builder(out_dir, tell or note):
        signature = file_signature(sources)
        present = find_dataset(out_dir)
        if (
            present
            and present.manifest.settings == settings
            and present.manifest.corpus.file_signature == signature
        ):
            return present

        found = survey(
            _counted(read_documents(sources, text_key), progress, "Reading the corpus", None)
        )
        if (
            present
            and present.manifest.settings == settings
            and present.manifest.corpus.digest == found.digest
        ):
            return present  # the files were touched, or stand elsewhere; the texts are the same
        _check_place(out_dir, present, replace)
        facts = CorpusFacts(
            named=corpus_names(corpus),
            file_signature=signature,
            digest=found.digest,
            documents=found.documents,
            bytes=found.bytes,
        )
        with _write_errors(out_dir), whole_folder(out_dir) as folder:
            _build(folder, sources, tokenizer, settings, facts, found, workers, progress)
    return open_dataset(out_dir)


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


def corpus_names(corpus: str | Path | Sequence[str | Path]) -> list[str]:
    """The corpus as a dataset's manifest names it."""
    named = [corpus] if isinstance(corpus, str | Path) else corpus
    return [str(item) for item in named]


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


def _check_place(folder: Path, present: Dataset | None, replace: bool) -> None:
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
            f"{folder} was built from another corpus or with other settings than are asked for "
            "now, and it must not change: restore them, or start anew in another folder."
        )


def _build(
    folder: Path,
    sources: list[Source],
    tokenizer: TextTokenizer | TrainBpe,
    settings: Settings,
    corpus: CorpusFacts,
    found: Survey,
    workers: int,
    progress: Progress,
) -> None:
    bound = held_out_below(found, settings.held_out)

    def documents() -> Iterator[Document]:
        return read_documents(sources, settings.text_key)

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
        ((document.text, document_hash(document) < bound) for document in documents()),
        workers,
    )
    token_bytes, train, held_out = write_parts(
        folder,
        _counted(encoded, progress, "Encoding documents", found.documents),
        tokenizer.most_tokens,
    )
    manifest = Manifest(
        settings=settings,
        corpus=corpus,
        tokenizer=TokenizerFacts(
            digest=tokenizer.digest, size=tokenizer.most_tokens, eos_id=tokenizer.eos_id
        ),
        token_bytes=token_bytes,
        train=train,
        held_out=held_out if held_out.documents else None,
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


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
