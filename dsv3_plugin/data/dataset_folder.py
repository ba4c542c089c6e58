"""A built dataset on disk: a folder that says what it was made from.

    manifest.json            what it was made from, and what is in it
    train.bin, train.idx     upstream's indexed format, one sequence per document, each ending in
                             the end-of-document token
    held_out.bin, .idx       likewise, the documents kept from training (may be absent)
    train_learned.bin, .idx  of conversations: a byte for each token, 1 where it is learned
    tokenizer/               the Hugging Face tokenizer folder that encoded it

Of a corpus that was encoded already, both `.bin` lead to its tokens (see `link_indexed`).

Upstream keeps its sample indices beside them (`train/cache`, `held_out/cache`), where they vanish
together with the data they index.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from dsv3_plugin.data.left_out import LeftOut
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.json_text import read_plain
from dsv3_plugin.recipe import epochs_counted
from dsv3_plugin.recipe.section import Section

MANIFEST = "manifest.json"
TRAIN = "train"
HELD_OUT = "held_out"
TOKENIZER = "tokenizer"
_LEARNED = "_learned"

_MOST_MANIFEST_BYTES = 2**20

# All that a dataset folder may hold: a folder with anything else is not ours to replace.
OWN_NAMES = frozenset(
    {MANIFEST, TOKENIZER, TRAIN, HELD_OUT, epochs_counted.FILE}
    | {
        f"{part}{what}.{suffix}"
        for part in (TRAIN, HELD_OUT)
        for what in ("", _LEARNED)
        for suffix in ("bin", "idx")
    }
)


def learned_prefix(prefix: Path) -> Path:
    """Of the bytes that say which tokens of a part are learned."""
    return prefix.with_name(prefix.name + _LEARNED)


class Settings(Section):
    """What was asked for, the corpus aside.

    Attributes:
        tokenizer: `bpe:N`, or the digest of a tokenizer folder.
        template: of conversations, the digest of their template and what it is told; None: it is
            text.
        longest: tokens of a conversation at the most.
        layout: version of this format and of the code that fills it; another one is rebuilt.
    """

    tokenizer: str
    held_out: float
    fim_rate: float
    seed: int
    text_key: str
    template: str | None = None
    longest: int | None = None
    layout: int = 1


Count = Annotated[int, Field(ge=0)]


class KindFacts(Section):
    """What was read from files of one kind (see `corpus.Source.kind`)."""

    kind: str
    files: Count
    documents: Count
    tokens: Count


class CorpusFacts(Section):
    """What it was made from.

    Attributes:
        named: the corpus as it was asked for.
        file_signature: of the names, sizes and times of the files.
        digest: of the texts.
        bytes: of the texts in UTF-8.
        kinds: what was read, by kinds; version 0.1 did not say.
        left_out: what was not.
        without_end: documents that do not end in the end-of-document token.
    """

    named: list[str]
    file_signature: str
    digest: str
    documents: Count
    bytes: Count
    kinds: tuple[KindFacts, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    without_end: Count = 0


class TokenizerFacts(Section):
    """What encoded it. `size` is the highest token id plus one."""

    digest: str
    size: Count
    eos_id: Count


class Part(Section):
    """One part: its documents, how many of them are cut for FIM, and its tokens."""

    documents: Count
    fim_documents: Count
    tokens: Count


class Tokens(Section):
    """The tokens of a corpus that was encoded already, which stay where they are.

    Attributes:
        path: of them; `bytes` is their size.
        changed, index_changed: when they and their index were, in nanoseconds.
    """

    path: str
    bytes: Count
    changed: int
    index_changed: int


class Manifest(Section):
    """Everything that is known about a built dataset.

    Attributes:
        token_bytes: the size of one token.
        tokens: where they are, if they are not in the folder.
    """

    settings: Settings
    corpus: CorpusFacts
    tokenizer: TokenizerFacts
    token_bytes: Literal[1, 2, 4, 8]
    tokens: Tokens | None = None
    train: Part
    held_out: Part | None


@dataclass(frozen=True)
class Dataset:
    """A complete dataset folder."""

    folder: Path
    manifest: Manifest

    @property
    def train_prefix(self) -> Path:
        """What upstream's `--train-data-path` takes."""
        return self.folder / TRAIN

    @property
    def held_out_prefix(self) -> Path | None:
        """What upstream's `--valid-data-path` takes; None when nothing was held out."""
        return self.folder / HELD_OUT if self.manifest.held_out else None

    @property
    def tokenizer_folder(self) -> Path:
        return self.folder / TOKENIZER

    @property
    def fingerprint(self) -> str:
        """Equal for datasets made from the same texts with the same settings."""
        manifest = self.manifest
        made_from = f"{manifest.settings.model_dump_json()} {manifest.corpus.digest}"
        return hashlib.blake2b(made_from.encode(), digest_size=16).hexdigest()


def open_dataset(folder: Path) -> Dataset:
    """Open a built dataset.

    Raises:
        UserError: the folder is none, or a file of it is missing or cut short.
    """
    path = folder / MANIFEST
    try:
        manifest = Manifest.model_validate_json(read_plain(path, _MOST_MANIFEST_BYTES))
    except FileNotFoundError:
        raise UserError(
            f"{folder} is not a dataset (no {MANIFEST}): build one with `dsv3 data build`."
        ) from None
    except (OSError, ValueError, ValidationError) as error:
        raise UserError(
            f"{path} cannot be read as a dataset's manifest: build the dataset again."
        ) from error
    for name, part in ((TRAIN, manifest.train), (HELD_OUT, manifest.held_out)):
        if part is not None:
            _check_part(folder / name, part, manifest)
            if manifest.settings.template is not None:
                of_bytes = manifest.model_copy(update={"token_bytes": 1})
                _check_part(learned_prefix(folder / name), part, of_bytes)
    return Dataset(folder, manifest)


def find_dataset(folder: Path) -> Dataset | None:
    """The dataset of a folder, None where there is no complete one."""
    try:
        return open_dataset(folder)
    except UserError:
        return None


def _check_part(prefix: Path, part: Part, manifest: Manifest) -> None:
    # 34 bytes of header; an int32 length and an int64 offset per document; one boundary more
    # than documents, int64 each (see `index_file`).
    tokens, token_bytes = manifest.tokens, manifest.token_bytes
    expected = {
        "bin": part.tokens * token_bytes if tokens is None else tokens.bytes,
        "idx": 34 + part.documents * (4 + 8) + (part.documents + 1) * 8,
    }
    for suffix, size in expected.items():
        path = prefix.with_suffix(f".{suffix}")
        found = path.stat().st_size if path.is_file() else 0
        if found != size and suffix == "bin" and tokens is not None:
            raise UserError(
                f"{tokens.path}, which {path} leads to, has {found:,} bytes instead of {size:,}: "
                f"put it back as it was."
            )
        if found != size:
            raise UserError(f"{path} has {found} bytes instead of {size}: build the dataset again.")
    from dsv3_plugin.data.index_file import Index, read_index  # numpy, which a plan never needs

    index = read_index(prefix)
    if index != Index(part.documents, part.documents, part.tokens, token_bytes):
        raise UserError(
            f"{prefix.with_suffix('.idx')} holds other documents than {MANIFEST} says: build the "
            "dataset again."
        )


def other_data(folder: Path, key: str, before: object, now: object) -> UserError:
    """What to say where a recipe asks for other data than its run began with."""
    moved = " (texts that have moved are not read again)" if key == "data.corpus" else ""
    return UserError(
        f"the recipe asks for other data than {folder}, which this run began with ({key} is {now} "
        f"and was {before}): restore it{moved}, or start a run in another folder with "
        "directory=PATH."
    )
