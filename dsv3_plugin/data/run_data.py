"""The data of a run: what the recipe asks for, built or found, and checked against the model."""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from dsv3_plugin.data.chat.form import ChatForm
from dsv3_plugin.data.chat.template import open_template
from dsv3_plugin.data.dataset_folder import Dataset, Part, Settings, find_dataset, other_data
from dsv3_plugin.data.dataset_tokenizer import tokenizer_of
from dsv3_plugin.data.forms import Form, TextForm
from dsv3_plugin.data.hub import tokenizer_folder_of
from dsv3_plugin.data.members import Built, Choices, build_members
from dsv3_plugin.data.place import write_errors
from dsv3_plugin.data.progress import Progress
from dsv3_plugin.data.tokenizer import TextTokenizer, TrainBpe, check_fits, open_tokenizer
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.named import named
from dsv3_plugin.recipe import corpora
from dsv3_plugin.recipe.common import HELD_OUT_SETS
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.recipe.sections import Data


@dataclass(frozen=True)
class RunData:
    """What training needs of its data.

    Attributes:
        datasets: of all that is drawn from, in its order.
        held_out_sets: what is evaluated on by itself, by its names.
    """

    datasets: tuple[Dataset, ...]
    held_out_sets: Mapping[str, Dataset] = field(default_factory=dict)

    @property
    def train_prefixes(self) -> list[Path]:
        """For upstream's `--train-data-path`."""
        return [dataset.train_prefix for dataset in self.datasets]

    @property
    def valid_prefixes(self) -> list[Path]:
        """For `--valid-data-path`; empty when nothing is held out."""
        return [prefix for dataset in self.datasets if (prefix := dataset.held_out_prefix)]

    @property
    def tokenizer_dir(self) -> Path:
        """A Hugging Face tokenizer folder, for `--tokenizer-model`."""
        return self.datasets[0].tokenizer_folder

    @property
    def eos_id(self) -> int:
        """The token that ends every document."""
        return self.datasets[0].manifest.tokenizer.eos_id

    @property
    def train_tokens(self) -> int:
        """How much there is, end-of-document tokens included."""
        return sum(dataset.manifest.train.tokens for dataset in self.datasets)

    @property
    def valid_tokens(self) -> int:
        """How much is held out."""
        parts = [dataset.manifest.held_out for dataset in self.datasets]
        return sum(part.tokens for part in parts if part is not None)

    @property
    def fingerprint(self) -> str:
        """Equal for equal texts, tokenizers and settings."""
        return _together([dataset.fingerprint for dataset in self.datasets])

    @property
    def corpus_digest(self) -> str:
        """Of the texts."""
        return _together([dataset.manifest.corpus.digest for dataset in self.datasets])

    @property
    def tokenizer_digest(self) -> str:
        """Of how they became tokens."""
        return self.datasets[0].manifest.tokenizer.digest


def _together(digests: Sequence[str]) -> str:
    """One digest for those of all members, in their order; of one, its own."""
    if len(digests) == 1:
        return digests[0]
    return hashlib.blake2b(" ".join(digests).encode(), digest_size=16).hexdigest()


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
    progress: Progress | None = None,
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
        progress: told after every document of the corpus.
        tell: takes a sentence for the person meanwhile; None: it goes to standard error.

    Raises:
        UserError: whatever is wrong with the corpus, the tokenizer or the place; a tokenizer
            larger than the model's vocabulary; a part shorter than one sequence; another dataset
            than the run began with.
    """
    tokenizer: TrainBpe | TextTokenizer
    if isinstance(data.tokenizer, str):
        tokenizer = open_tokenizer(tokenizer_folder_of(data.tokenizer))
    else:
        tokenizer = TrainBpe(data.tokenizer.vocab_size)
    check_fits(tokenizer, model.vocab_size, model.name)
    form = form_of(data, tokenizer)
    longest = data.seq_length if isinstance(form, ChatForm) else None
    choices = Choices(data.held_out, data.fim_rate, seed, form, longest, data.on_bad_row)
    if accept is not None and isinstance(tokenizer, TextTokenizer):
        accept(tokenizer)
    places = corpora.folders(out_dir, data.corpus)
    there = [find_dataset(place) is not None for place in places]
    built = build_members(
        data.corpus,
        tokenizer,
        out_dir,
        choices,
        keep=resuming,
        workers=workers,
        replace=data.path is None,
        accept=accept,
        progress=progress,
        tell=tell,
    )
    found = RunData(tuple(member.dataset for member in built))
    looked_at = [not (resuming and was_there) for was_there in there]
    if tell is not None:
        for sentence in _notes(data, itertools.compress(built, looked_at)):
            tell(sentence)
    _refuse_other_texts(out_dir, found, trained_on)
    for member, anew in zip(built, looked_at, strict=True):
        if not anew:
            _refuse_other_choices(member)
    for member in built:
        encoded_with = tokenizer_of(member.dataset)
        if accept is not None:
            accept(encoded_with)
        whose = "" if len(built) == 1 else f" of {member.member}"
        manifest = member.dataset.manifest
        if longest is not None:  # each fits into a sequence, and has one where none comes with it
            if data.held_out and manifest.held_out is None:
                raise UserError(
                    f"the held-out part{whose} has no conversations, as those it would have are "
                    "longer than a sequence: raise data.seq_length, take more of them, or another "
                    "held_out share."
                )
            continue
        _check_length(f"training part{whose}", manifest.train, data.seq_length)
        if manifest.held_out:
            _check_length(f"held-out part{whose}", manifest.held_out, data.seq_length)
    of_set = replace(choices, held_out=0.0, fim_rate=0.0, seed=0)
    sets = {
        name: _held_out_set(data, name, of_set, out_dir, encoded_with, resuming, workers, tell)
        for name in data.held_out_sets
    }
    if tell is not None and not resuming:
        for name, member in sets.items():
            for sentence in _notes(data, [member], f"held-out set {name}"):
                tell(sentence)
    return replace(found, held_out_sets={name: member.dataset for name, member in sets.items()})


def form_of(data: Data, tokenizer: TrainBpe | TextTokenizer) -> Form:
    """What the rows of a recipe's data are.

    Raises:
        UserError: conversations need a template, and there is none.
    """
    if data.packing != "conversations":
        return TextForm(data.text_key)
    assert isinstance(tokenizer, TextTokenizer), "the rules leave no other for conversations"
    written = None if data.template is None else named(data.template)
    return ChatForm(open_template(tokenizer.folder, written, data.template_arguments, data.turns))


def _held_out_set(
    data: Data,
    name: str,
    choices: Choices,
    out_dir: Path,
    tokenizer: TextTokenizer,
    resuming: bool,
    workers: int,
    tell: Callable[[str], None] | None,
) -> Built:
    """The dataset of a held-out set, which is there as a whole; a run may go on with others."""
    folder, path = out_dir / HELD_OUT_SETS / name, data.held_out_sets[name]
    there = find_dataset(folder)
    with write_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    [built] = build_members(
        path,
        tokenizer,
        folder,
        choices,
        keep=resuming and there is not None and corpora.same(there.manifest.corpus.named, path),
        workers=workers,
        replace=data.path is None,
        tell=tell,
    )
    if choices.longest is None:
        _check_length(f"held-out set {name}", built.dataset.manifest.train, data.seq_length)
    return built


def _notes(data: Data, members: Iterable[Built], of: str = "the corpus") -> Iterator[str]:
    """What a person should know of data that are not those of a run that resumes."""
    for member in members:
        corpus, tokenizer = member.dataset.manifest.corpus, member.dataset.manifest.tokenizer
        if corpus.left_out:
            yield f"Not read of {of}: {'; '.join(map(str, corpus.left_out))}."
        if corpus.without_end:
            yield (
                f"{corpus.without_end:,} of the {corpus.documents:,} documents of {member.member} "
                f"do not end in token {tokenizer.eos_id}, which ends a document: each runs on into "
                f"the next."
            )
        if data.fim_rate and member.member.prefix is not None:
            yield f"{member.member} is encoded already: none of it is cut for fill-in-the-middle."


_KEYS = {"seed": "training.seed", "longest": "data.seq_length"}
"""The keys of a recipe that settings of a dataset are, where they are not in its data section."""


def _refuse_other_choices(member: Built) -> None:
    """Raise UserError if a recipe asks for another dataset than the one that is there."""
    dataset = member.dataset
    named = dataset.manifest.corpus.named
    if not corpora.same(named, member.member.names):
        raise other_data(dataset.folder, "data.corpus", ", ".join(named), str(member.member))
    for name in Settings.model_fields:
        before, now = getattr(dataset.manifest.settings, name), getattr(member.asked, name)
        if before != now:
            raise other_data(dataset.folder, _KEYS.get(name, f"data.{name}"), before, now)


def _refuse_other_texts(folder: Path, data: RunData, trained_on: TrainedOn | None) -> None:
    """Raise UserError if datasets are not those that a run's checkpoints have seen."""
    if trained_on is None:
        return
    for what, found, seen in (
        ("texts", data.corpus_digest, trained_on.corpus),
        ("tokenizer", data.tokenizer_digest, trained_on.tokenizer),
    ):
        if found != seen:
            raise UserError(
                f"{folder} was built anew since this run began, and its {what} differ: put "
                "the dataset before in its place (or name it with data.path=FOLDER), or start a "
                "run in another folder with directory=PATH."
            )


def _check_length(name: str, part: Part, seq_length: int) -> None:
    # One token more than a sequence: its last token is predicted too.
    if part.tokens <= seq_length:
        raise UserError(
            f"the {name} has {part.tokens} tokens, less than one sequence of {seq_length}: "
            "take a larger corpus, another held_out share, or a smaller seq_length."
        )
