"""The data of a run: what the recipe asks for, built or found, and checked against the model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dsv3_plugin.data.build import build_dataset, settings_of
from dsv3_plugin.data.corpus import corpus_names, same_corpus
from dsv3_plugin.data.dataset_folder import Dataset, Part, Settings, find_dataset, other_data
from dsv3_plugin.data.dataset_tokenizer import tokenizer_of
from dsv3_plugin.data.tokenizer import TextTokenizer, TrainBpe, check_fits, open_tokenizer
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.named import named
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.recipe.sections import Data


@dataclass(frozen=True)
class RunData:
    """What training needs of its data.

    Attributes:
        train_prefix: for upstream's `--train-data-path`.
        valid_prefix: for `--valid-data-path`; None when nothing is held out.
        tokenizer_dir: a Hugging Face tokenizer folder, for `--tokenizer-model`.
        eos_id: the token that ends every document.
        train_tokens, valid_tokens: how much there is, end-of-document tokens included.
        fingerprint: equal for equal texts, tokenizers and settings.
        corpus_digest: of the texts.
        tokenizer_digest: of how they became tokens.
    """

    train_prefix: Path
    valid_prefix: Path | None
    tokenizer_dir: Path
    eos_id: int
    train_tokens: int
    valid_tokens: int
    fingerprint: str
    corpus_digest: str
    tokenizer_digest: str


class TrainedOn(Protocol):
    """What is known of the data that a run began with, by digests."""

    @property
    def corpus(self) -> str: ...

    @property
    def tokenizer(self) -> str: ...


def ensure_data(
    data: Data,
    out_dir: Path,
    model: ModelConfig,
    *,
    seed: int = 1234,
    resuming: bool = False,
    trained_on: TrainedOn | None = None,
    accept: Callable[[TextTokenizer], None] | None = None,
    workers: int = 1,
    tell: Callable[[str], None] | None = None,
) -> RunData:
    """Make sure that the dataset a recipe asks for is in `out_dir`. Call it on one process.

    A run that resumes reads the data it began with: the corpus is not looked at again (a new
    release of Python would change the standard library), and a recipe that now asks for something
    else is refused. A folder that the recipe names is never replaced; the run's own is.

    Args:
        data: the recipe's section.
        out_dir: the dataset folder: the one that the section names, or one of the run's own.
        model: its vocabulary has to hold the tokenizer's.
        seed: of the FIM cuts.
        resuming: whether the run has a checkpoint to go on from.
        trained_on: what it was trained on so far, where that is known.
        accept: looks at the tokenizer before documents are encoded with it, and raises UserError
            if it does not belong to the weights; None: there are none.
        workers: processes that encode; 1 leaves it to the threads of the tokenizers library.
        tell: takes a sentence for the person meanwhile; None: it goes to standard error.

    Raises:
        UserError: whatever is wrong with the corpus, the tokenizer or the place; a tokenizer
            larger than the model's vocabulary; a part shorter than one sequence; another dataset
            than the run began with.
    """
    tokenizer: TrainBpe | TextTokenizer
    if isinstance(data.tokenizer, str):
        tokenizer = open_tokenizer(named(data.tokenizer))
    else:
        tokenizer = TrainBpe(data.tokenizer.vocab_size)
    check_fits(tokenizer, model.vocab_size, model.name)
    choices = {
        "held_out": data.held_out,
        "fim_rate": data.fim_rate,
        "seed": seed,
        "text_key": data.text_key,
    }
    if accept is not None and isinstance(tokenizer, TextTokenizer):
        accept(tokenizer)
    dataset = find_dataset(out_dir) if resuming else None
    resumed = dataset is not None
    if dataset is None:
        dataset = build_dataset(
            data.corpus,
            tokenizer,
            out_dir,
            **choices,
            on_bad_row=data.on_bad_row,
            workers=workers,
            replace=data.path is None,
            accept=accept,
            tell=tell,
        )
        if tell is not None and (left_out := dataset.manifest.corpus.left_out):
            tell(f"Not read of the corpus: {'; '.join(map(str, left_out))}.")
    _refuse_other_texts(dataset, trained_on)
    if resumed:
        _refuse_other_choices(dataset, settings_of(tokenizer, **choices), data)
    encoded_with = tokenizer_of(dataset)
    if accept is not None:
        accept(encoded_with)
    _check_length("training", dataset.manifest.train, data.seq_length)
    if dataset.manifest.held_out:
        _check_length("held-out", dataset.manifest.held_out, data.seq_length)
    return _described(dataset)


_KEYS = {"seed": "training.seed"}
"""The keys of a recipe that settings of a dataset are, where they are not in its data section."""


def _refuse_other_choices(dataset: Dataset, asked: Settings, data: Data) -> None:
    """Raise UserError if a recipe asks for another dataset than the one that is there."""
    built = dataset.manifest.settings
    for name in Settings.model_fields:
        if (before := getattr(built, name)) != (now := getattr(asked, name)):
            raise other_data(dataset.folder, _KEYS.get(name, f"data.{name}"), before, now)
    named, asked_for = dataset.manifest.corpus.named, corpus_names(data.corpus)
    if not same_corpus(named, asked_for):
        raise other_data(dataset.folder, "data.corpus", ", ".join(named), ", ".join(asked_for))


def _refuse_other_texts(dataset: Dataset, trained_on: TrainedOn | None) -> None:
    """Raise UserError if a dataset is not the one that a run's checkpoints have seen."""
    if trained_on is None:
        return
    manifest = dataset.manifest
    for what, found, seen in (
        ("texts", manifest.corpus.digest, trained_on.corpus),
        ("tokenizer", manifest.tokenizer.digest, trained_on.tokenizer),
    ):
        if found != seen:
            raise UserError(
                f"{dataset.folder} was built anew since this run began, and its {what} differ: put "
                "the dataset before in its place (or name it with data.path=FOLDER), or start a "
                "run in another folder with directory=PATH."
            )


def _check_length(name: str, part: Part, seq_length: int) -> None:
    # One token more than a sequence: its last token is predicted too.
    if part.tokens <= seq_length:
        raise UserError(
            f"the {name} part has {part.tokens} tokens, less than one sequence of {seq_length}: "
            "take a larger corpus, another held_out share, or a smaller seq_length."
        )


def _described(dataset: Dataset) -> RunData:
    manifest = dataset.manifest
    return RunData(
        train_prefix=dataset.train_prefix,
        valid_prefix=dataset.held_out_prefix,
        tokenizer_dir=dataset.tokenizer_folder,
        eos_id=manifest.tokenizer.eos_id,
        train_tokens=manifest.train.tokens,
        valid_tokens=manifest.held_out.tokens if manifest.held_out else 0,
        fingerprint=dataset.fingerprint,
        corpus_digest=manifest.corpus.digest,
        tokenizer_digest=manifest.tokenizer.digest,
    )
