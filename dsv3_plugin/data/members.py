"""The datasets of a corpus's members: each is built, or linked, in a folder of its own.

One member has the dataset folder itself. Those of a mixture are `member0`, `member1`, … in it, and
a tokenizer that is to be trained is trained once, on the texts of all.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from dsv3_plugin.data.build import build_dataset, settings_of
from dsv3_plugin.data.corpus import file_signature, find_sources
from dsv3_plugin.data.dataset_folder import (
    MANIFEST,
    OWN_NAMES,
    TOKENIZER,
    Dataset,
    Settings,
    find_dataset,
)
from dsv3_plugin.data.documents import read_documents
from dsv3_plugin.data.forms import TEXT, Form
from dsv3_plugin.data.left_out import Tally
from dsv3_plugin.data.link_indexed import link_indexed, settings_of_indexed, tokens_of
from dsv3_plugin.data.place import sole_builder, write_errors
from dsv3_plugin.data.progress import Progress
from dsv3_plugin.data.survey import document_hash, held_out_below, survey
from dsv3_plugin.data.tokenizer import TextTokenizer, TrainBpe, open_tokenizer, train_bpe
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.folders import whole_folder
from dsv3_plugin.files.json_text import read_plain
from dsv3_plugin.files.named import named
from dsv3_plugin.recipe import corpora
from dsv3_plugin.recipe.corpora import Corpus, Member
from dsv3_plugin.recipe.section import Section
from dsv3_plugin.recipe.sections import OnBadRow
from dsv3_plugin.terminal.lines import note

_MADE_FROM = "made_from.json"


@dataclass(frozen=True)
class Choices:
    """How texts become datasets, as `build_dataset` takes it."""

    held_out: float = 0.01
    fim_rate: float = 0.0
    seed: int = 1234
    form: Form = TEXT
    longest: int | None = None
    on_bad_row: OnBadRow = "stop"


@dataclass(frozen=True)
class Built:
    """A member and its dataset, and the settings that were asked for of it."""

    member: Member
    dataset: Dataset
    asked: Settings


def build_members(
    corpus: Corpus,
    tokenizer: TrainBpe | TextTokenizer,
    out_dir: Path,
    choices: Choices,
    *,
    keep: bool = False,
    workers: int = 1,
    replace: bool = True,
    accept: Callable[[TextTokenizer], None] | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> list[Built]:
    """The datasets of all members that are drawn from, built where they are not there yet.

    Args:
        corpus: as a recipe or a command line names it.
        keep: whether datasets that are there stay what they are, without a look at their texts;
            tokens that are not in them have to be the same. Those of texts that are gone do so
            anyway, where they are what is asked for.
        tokenizer, out_dir, workers, replace, accept, progress, tell: see `build_dataset`.

    Raises:
        UserError: for a corpus, tokenizer, setting or place that does not do.
    """
    drawn = [member for _, member in corpora.drawn_from(corpus)]
    encoded = next((member for member in drawn if member.prefix is not None), None)
    if encoded is not None and isinstance(tokenizer, TrainBpe):
        raise UserError(
            f"{encoded} is encoded already, so no tokenizer can be trained on it: name the folder "
            f"of the one that encoded it."
        )
    if not corpora.is_one(corpus):
        _make_room(out_dir, replace, tell or note)
        if isinstance(tokenizer, TrainBpe):
            tokenizer = _shared_tokenizer(drawn, tokenizer, out_dir, choices, keep, tell or note)
    built = []
    for member, folder in zip(drawn, corpora.folders(out_dir, corpus), strict=True):
        asked = _settings_of_member(member, tokenizer, choices)
        dataset = find_dataset(folder) if keep else _of_texts_that_are_gone(folder, member, asked)
        if member.prefix is not None and (dataset is None or _has_changed(dataset, member)):
            dataset = link_indexed(
                member.prefix,
                tokenizer,
                folder,
                held_out=choices.held_out,
                replace=replace and not keep,
                accept=accept,
                progress=progress,
                tell=tell,
            )
        elif dataset is None:
            dataset = build_dataset(
                member.names,
                tokenizer,
                folder,
                **vars(choices),
                workers=workers,
                replace=replace,
                accept=accept,
                progress=progress,
                tell=tell,
            )
        built.append(Built(member, dataset, asked))
    return built


def members_in(folder: Path) -> list[Path]:
    """The datasets in a mixture's folder, in their order; none where it is of one corpus."""
    if (folder / MANIFEST).exists():
        return []
    return sorted(
        (place for place in folder.glob("member*") if place.name[6:].isdecimal()),
        key=lambda place: int(place.name[6:]),
    )


def _of_texts_that_are_gone(folder: Path, member: Member, asked: Settings) -> Dataset | None:
    """The dataset that is there of texts that are not, as on nodes that were handed it alone.

    None where the texts are there, by which a dataset is judged, or it is not what is asked for.
    """
    if not _are_gone(member) or (dataset := find_dataset(folder)) is None:
        return None
    named_so = dataset.manifest.corpus.named
    is_asked_for = dataset.manifest.settings == asked and corpora.same(named_so, member.names)
    return dataset if is_asked_for else None


def _are_gone(member: Member) -> bool:
    """Whether a text that is named is not there."""
    if member.prefix is not None:
        return False
    return not all(name == corpora.STDLIB or named(name).exists() for name in member.names)


def _has_changed(dataset: Dataset, member: Member) -> bool:
    """Whether a member's tokens have been written since they were linked, to all appearances."""
    tokens = dataset.manifest.tokens
    return tokens is not None and tokens != tokens_of(member.prefix)


def _settings_of_member(
    member: Member, tokenizer: TrainBpe | TextTokenizer, choices: Choices
) -> Settings:
    if member.prefix is None:
        asked = {name: value for name, value in vars(choices).items() if name != "on_bad_row"}
        return settings_of(tokenizer, **asked)
    return settings_of_indexed(tokenizer, held_out=choices.held_out)


def _make_room(folder: Path, replace: bool, tell: Callable[[str], None]) -> None:
    """A folder for a mixture, where the dataset of one corpus may lie."""
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / MANIFEST).exists():
            return
        if not replace:
            raise UserError(
                f"{folder} holds the dataset of one corpus, and a mixture is asked for: choose "
                "another folder, or have it replaced (dsv3 data build --replace)."
            )
        with sole_builder(folder, tell):
            tell(f"The dataset in {folder} gives way to those of a mixture.")
            for name in sorted(OWN_NAMES, key=lambda name: name != MANIFEST):
                path = folder / name
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)


class _MadeFrom(Section):
    """What a mixture's own tokenizer was trained on, and how."""

    tokenizer: str
    held_out: float
    text_key: str
    on_bad_row: OnBadRow
    files: list[str]


def _shared_tokenizer(
    texts: Sequence[Member],
    wanted: TrainBpe,
    out_dir: Path,
    choices: Choices,
    keep: bool,
    tell: Callable[[str], None],
) -> TextTokenizer:
    """A tokenizer trained on the documents of all members that are not held out."""
    folder = out_dir / TOKENIZER
    if folder.is_dir() and (keep or any(map(_are_gone, texts))):
        return open_tokenizer(folder)
    made_from = _MadeFrom(
        tokenizer=str(wanted),
        held_out=choices.held_out,
        **choices.form.settings,
        on_bad_row=choices.on_bad_row,
        files=[
            file_signature(
                find_sources(member.names, choices.form, left_out, choices.on_bad_row),
                left_out.all(),
            )
            for member in texts
            for left_out in (Tally(),)
        ],
    )
    with sole_builder(folder, tell):
        if _read_made_from(folder) == made_from:
            return open_tokenizer(folder)
        with write_errors(folder), whole_folder(folder) as new:
            train_bpe(_trained_on(texts, choices), wanted.vocab_size, new)
            (new / _MADE_FROM).write_text(made_from.model_dump_json(indent=2) + "\n", "utf-8")
    return open_tokenizer(folder)


def _read_made_from(folder: Path) -> _MadeFrom | None:
    try:
        return _MadeFrom.model_validate_json(read_plain(folder / _MADE_FROM))
    except (OSError, ValueError, ValidationError):
        return None


def _trained_on(texts: Sequence[Member], choices: Choices) -> Iterator[str]:
    """The texts; all are read once before the first comes, which finds whatever stops a reading."""
    bounded = []
    for member in texts:
        sources = find_sources(member.names, choices.form, on_bad_row=choices.on_bad_row)
        documents = partial(read_documents, sources, choices.form, on_bad_row=choices.on_bad_row)
        found = survey(documents(), names=member.names)
        bounded.append((documents, held_out_below(found, choices.held_out)))
    return (
        document.text
        for documents, bound in bounded
        for document in documents()
        if document_hash(document) >= bound
    )
