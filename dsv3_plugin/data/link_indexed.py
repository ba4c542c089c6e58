"""A corpus that is encoded already becomes a dataset: indices of its parts, over its own tokens.

The tokens stay where they are, and a dataset's `train.bin` and `held_out.bin` lead there; what is
written are two indices in upstream's format that tell which documents are whose. A document is a
sequence of the index, as upstream's `GPTDataset` has it, and is held out by the hash of its tokens,
as a text is by that of its text: one that is there twice never stands on both sides.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy

from dsv3_plugin.data.dataset_folder import (
    HELD_OUT,
    MANIFEST,
    TOKENIZER,
    TRAIN,
    CorpusFacts,
    Dataset,
    KindFacts,
    Manifest,
    Part,
    Settings,
    TokenizerFacts,
    Tokens,
    find_dataset,
    open_dataset,
)
from dsv3_plugin.data.index_file import Sequences, map_sequences, read_index, write_index
from dsv3_plugin.data.place import check_place, gives_way, sole_builder, write_errors
from dsv3_plugin.data.progress import Progress, counted, silent
from dsv3_plugin.data.survey import Survey, held_out_below, refuse_share
from dsv3_plugin.data.tokenizer import TextTokenizer
from dsv3_plugin.data.tokenizer_folder import copy_tokenizer
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.folders import whole_folder
from dsv3_plugin.terminal.lines import note

KIND = "indexed"


def link_indexed(
    prefix: Path,
    tokenizer: TextTokenizer,
    out_dir: Path,
    *,
    held_out: float = 0.01,
    replace: bool = True,
    accept: Callable[[TextTokenizer], None] | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> Dataset:
    """Make the dataset `out_dir` of an encoded corpus, or reuse it when it is the one asked for.

    All of its tokens are read once.

    Args:
        prefix: of its `.bin` and `.idx`.
        tokenizer: the one that encoded it.
        out_dir: the folder, complete or absent at any moment.
        held_out: fraction of the documents kept from training, in [0, 1).
        replace: whether another dataset in `out_dir` gives way to this one.
        accept: looks at the tokenizer beforehand; it may raise UserError.
        progress: told after every document.
        tell: takes a sentence for the person meanwhile; None: it goes to standard error.

    Raises:
        UserError: a file is missing, the index does not describe the tokens, a token is none of the
            tokenizer's, or the place does not do.
    """
    refuse_share(held_out)
    settings = settings_of_indexed(tokenizer, held_out=held_out)
    if accept is not None:
        accept(tokenizer)
    tokens = tokens_of(prefix)
    with sole_builder(out_dir, tell or note):
        present = find_dataset(out_dir)
        same = present is not None and present.manifest.settings == settings
        if same and present.manifest.tokens == tokens:
            return present
        read_index(prefix, of_all=True)
        sequences = map_sequences(prefix)
        found = _read(prefix, sequences, tokenizer, progress or silent)
        if same and present.manifest.tokens and _is_still(present, prefix, tokens, found):
            return present  # the files were touched; the tokens are the same
        with write_errors(out_dir):
            check_place(out_dir, present, settings, replace)
            if sentence := gives_way(out_dir, present, settings, [str(prefix)]):
                (tell or note)(sentence)
        with write_errors(out_dir), whole_folder(out_dir) as folder:
            _fill(folder, prefix, sequences, tokenizer, settings, tokens, found)
    return open_dataset(out_dir)


def settings_of_indexed(tokenizer: TextTokenizer, *, held_out: float) -> Settings:
    """What a manifest records of `link_indexed`: nothing is cut, and no text has a key."""
    return Settings(
        tokenizer=tokenizer.digest, held_out=held_out, fim_rate=0.0, seed=0, text_key=""
    )


def tokens_of(prefix: Path) -> Tokens:
    """Where a corpus's tokens are, and what tells them from others without reading them.

    Raises:
        UserError: one of its two files is not there.
    """
    bin_file, index = (prefix.with_name(f"{prefix.name}.{suffix}") for suffix in ("bin", "idx"))
    for path, other in ((bin_file, index), (index, bin_file)):
        if not path.is_file():
            beside = f"{other.name} is there alone" if other.is_file() else f"nor is {other.name}"
            raise UserError(
                f"corpus {prefix}: {path} is not there ({beside}): an encoded corpus is the two of "
                f"them, as Megatron's preprocessing writes them."
            )
    status, of_index = bin_file.stat(), index.stat()
    return Tokens(
        path=str(bin_file.resolve()),
        bytes=status.st_size,
        changed=status.st_mtime_ns,
        index_changed=of_index.st_mtime_ns,
    )


@dataclass(frozen=True)
class _Found:
    """What reading all of a corpus finds.

    Attributes:
        hashes: uint64 `[sequences]`, uniform, from the tokens alone.
        digest: of all tokens in their order.
        without_end: documents that do not end as the tokenizer ends them.
    """

    hashes: numpy.ndarray
    digest: str
    without_end: int


def _read(
    prefix: Path, sequences: Sequences, tokenizer: TextTokenizer, progress: Progress
) -> _Found:
    hashes = numpy.zeros(len(sequences.lengths), dtype=numpy.uint64)
    hasher, without_end = hashlib.blake2b(digest_size=16), 0
    for number, ids in enumerate(
        counted(_documents(prefix, sequences), progress, f"Reading {prefix}", len(hashes))
    ):
        if not len(ids):
            continue
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= tokenizer.most_tokens:
            raise UserError(
                f"{prefix}.bin: document {number:,} has token {low if low < 0 else high:,}, and "
                f"tokenizer {tokenizer} has tokens 0 to {tokenizer.most_tokens - 1:,}: name the "
                f"one that encoded it with data.tokenizer."
            )
        digest = hashlib.blake2b(ids.tobytes(), digest_size=16).digest()
        hashes[number] = int.from_bytes(digest[:8], "little")
        hasher.update(digest)
        without_end += int(ids[-1] != tokenizer.eos_id)
    if not (sequences.lengths > 0).any():
        raise UserError(f"corpus {prefix} is empty: none of its documents has a token.")
    return _Found(hashes, hasher.hexdigest(), without_end)


def _documents(prefix: Path, sequences: Sequences) -> Iterator[numpy.ndarray]:
    path = prefix.with_name(f"{prefix.name}.bin")
    tokens = numpy.memmap(path, numpy.uint8, "r") if path.stat().st_size else numpy.empty(0, "u1")
    for length, offset in zip(sequences.lengths, sequences.offsets, strict=True):
        yield (
            numpy.frombuffer(tokens, sequences.dtype, int(length), int(offset))
            if length
            else (numpy.empty(0, sequences.dtype))
        )


def _is_still(present: Dataset, prefix: Path, tokens: Tokens, found: _Found) -> bool:
    manifest = present.manifest
    return manifest.corpus.digest == found.digest and manifest.tokens.path == tokens.path


def _fill(
    folder: Path,
    prefix: Path,
    sequences: Sequences,
    tokenizer: TextTokenizer,
    settings: Settings,
    tokens: Tokens,
    found: _Found,
) -> None:
    there = sequences.lengths > 0
    hashes = found.hashes[there]
    survey = Survey(
        documents=len(hashes),
        bytes=tokens.bytes,
        digest=found.digest,
        smallest_hash=int(hashes.min()),
        largest_hash=int(hashes.max()),
        of_kind={KIND: len(hashes)},
    )
    held_out = there & (found.hashes < numpy.uint64(held_out_below(survey, settings.held_out)))
    parts: dict[str, Part | None] = {}
    for name, chosen in ((TRAIN, there & ~held_out), (HELD_OUT, held_out)):
        parts[name] = None
        if name == TRAIN or chosen.any():
            lengths = numpy.asarray(sequences.lengths[chosen])
            write_index(folder / f"{name}.idx", lengths, sequences.offsets[chosen], sequences.code)
            (folder / f"{name}.bin").symlink_to(tokens.path)
            parts[name] = Part(
                documents=len(lengths),
                fim_documents=0,
                tokens=int(lengths.sum(dtype=numpy.int64)),
            )
    copy_tokenizer(tokenizer.folder, folder / TOKENIZER)
    count = sum(part.tokens for part in parts.values() if part is not None)
    manifest = Manifest(
        settings=settings,
        corpus=CorpusFacts(
            named=[str(prefix)],
            file_signature="",
            digest=found.digest,
            documents=len(hashes),
            bytes=tokens.bytes,
            kinds=(KindFacts(kind=KIND, files=1, documents=len(hashes), tokens=count),),
            without_end=found.without_end,
        ),
        tokenizer=TokenizerFacts(
            digest=tokenizer.digest, size=tokenizer.most_tokens, eos_id=tokenizer.eos_id
        ),
        token_bytes=sequences.dtype.itemsize,
        tokens=tokens,
        train=parts[TRAIN],
        held_out=parts[HELD_OUT],
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
