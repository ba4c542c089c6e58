"""`dsv3 data`: build a dataset, look into one."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dsv3_plugin.cli.examples import examples
from dsv3_plugin.cli.options import Overrides, Recipe
from dsv3_plugin.errors import UserError
from dsv3_plugin.numbers import bytes_text, number_of
from dsv3_plugin.terminal.lines import note, say_all, show_text

if TYPE_CHECKING:
    from dsv3_plugin.data.dataset_folder import CorpusFacts, Dataset, Manifest, Part

data = typer.Typer(help="Datasets: build one, look into one.", no_args_is_help=True)


@data.command("build", epilog=examples("data build"))
def build(
    corpus: Annotated[
        list[str],
        typer.Option(
            help='"stdlib", a file or a folder (text, JSON, parquet), or an encoded PREFIX (.bin, '
            ".idx); may be repeated."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the dataset.")],
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="bpe:N trains one of N tokens; else a Hugging Face folder, or a name on the hub.",
            show_default="required",
        ),
    ] = None,
    fim_rate: Annotated[
        float, typer.Option(help="Share of documents cut for fill-in-the-middle, 0 to 1.")
    ] = 0.0,
    held_out: Annotated[
        float, typer.Option(help="Share of documents kept from training, 0 to 1.")
    ] = 0.01,
    seed: Annotated[int, typer.Option(help="Seed of the fill-in-the-middle cuts.")] = 1234,
    text_key: Annotated[str, typer.Option(help="JSON key or parquet column to read.")] = "text",
    on_bad_row: Annotated[
        Literal["stop", "skip"],
        typer.Option(help="What to do about a row that cannot be read; skipped ones are counted."),
    ] = "stop",
    replace: Annotated[
        bool, typer.Option("--replace", help="Another dataset in the folder gives way.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Processes that encode.", min=1)] = 1,
) -> None:
    """Turn text, JSON or parquet into a dataset in upstream's indexed format.

    Its defaults are those of a recipe. An encoded corpus is linked, and a dataset of its own.
    """
    if tokenizer is None:
        raise UserError(
            "say which tokenizer encodes the corpus: --tokenizer bpe:4096 trains one of 4096 "
            "tokens on it, --tokenizer FOLDER takes a Hugging Face tokenizer."
        )
    from dsv3_plugin.recipe.corpora import wrong_with

    if (sentence := next(wrong_with(corpus, "--corpus"), None)) is not None:
        raise UserError(sentence)
    from dsv3_plugin.upstream import cpu_host

    cpu_host.enable()  # no GPU is needed, and a visible one would only be initialised

    from dsv3_plugin.cli.progress import phases
    from dsv3_plugin.data.forms import TextForm
    from dsv3_plugin.data.members import Choices, build_members
    from dsv3_plugin.data.tokenizer import choose_tokenizer

    with phases() as progress:
        members = build_members(
            corpus,
            choose_tokenizer(tokenizer),
            out,
            Choices(held_out, fim_rate, seed, TextForm(text_key), on_bad_row=on_bad_row),
            workers=workers,
            replace=replace,
            progress=progress,
        )
    for number, member in enumerate(members):
        say_all([""] * (number > 0) + summary(member.dataset))


@data.command("show", epilog=examples("data show"))
def show(
    directory: Annotated[Path, typer.Argument(help="Folder of a dataset, or of a run.")],
    document: Annotated[int, typer.Option(help="Which training document to show.")] = 0,
    tokens: Annotated[int, typer.Option(help="How many tokens of it.", min=1)] = 120,
) -> None:
    """Say what a dataset holds, and decode the beginning of one document.

    Of a mixture it says what each of its datasets holds; each can be shown by itself.
    """
    from dsv3_plugin.upstream import cpu_host

    cpu_host.enable()

    from dsv3_plugin.data.dataset_folder import open_dataset
    from dsv3_plugin.data.indexed import decode_document
    from dsv3_plugin.data.members import members_in
    from dsv3_plugin.recipe.places import data_at

    folder = data_at(directory)
    if members := members_in(folder):
        for number, member in enumerate(members):
            say_all([""] * (number > 0) + summary(open_dataset(member)))
        return
    dataset = open_dataset(folder)
    text = decode_document(dataset, document, tokens)
    say_all([*summary(dataset), "", f"document {document} begins:", ""])
    show_text(f"{text}\n")


@data.command("prepare", epilog=examples("data prepare"))
def prepare(recipe: Recipe, overrides: Overrides = None) -> None:
    """Build the data of a recipe, as its run would: for a machine that trains nothing.

    Files that data.made_by makes, and that are not there, are made first.

    Other data in the run's own folder give way, which is said; those that data.path names stay.

    The conversations of a fine-tuning are counted on the way, by which its steps are known.

    The prompts of reinforcement learning are looked at and counted; nothing is built of them.
    """
    from dsv3_plugin.cli.progress import phases
    from dsv3_plugin.launch.made_first import prepare as make_and_build

    with phases() as progress:
        make_and_build(recipe, overrides or [], note, progress)


def summary(dataset: "Dataset") -> list[str]:
    """A dataset's origin and size, a line each, and tables of what was read and of its lengths."""
    manifest = dataset.manifest
    corpus, settings, tokenizer = manifest.corpus, manifest.settings, manifest.tokenizer
    held_out = _part(manifest.held_out) if manifest.held_out else "nothing"
    return [
        f"dataset    {dataset.folder}",
        f"corpus     {', '.join(corpus.named)}: {number_of(corpus.documents, 'document')}, "
        f"{bytes_text(corpus.bytes)}",
        f"tokenizer  {tokenizer.size:,} tokens, token {tokenizer.eos_id} ends a document",
        f"train      {_part(manifest.train)}, {manifest.train.fim_documents:,} of them cut for "
        f"fill-in-the-middle (rate {settings.fim_rate}, seed {settings.seed})",
        f"held out   {held_out}",
        *_encoded_already(manifest),
        "",
        *_lengths(dataset),
        "",
        *_reading(corpus),
    ]


def _encoded_already(manifest: "Manifest") -> list[str]:
    """Where the tokens of an encoded corpus are, and whether its documents end."""
    if manifest.tokens is None:
        return []
    without = manifest.corpus.without_end
    return [
        f"tokens     in {manifest.tokens.path}",
        *([f"no end     {without:,} documents run on into the next"] if without else []),
    ]


def _reading(corpus: "CorpusFacts") -> list[str]:
    """What was read, by kinds of files, and what was left out, and why."""
    kinds = [(of.kind, of.files, of.documents, of.tokens) for of in corpus.kinds]
    return [
        *_table(("kind", "files", "documents", "tokens"), kinds),
        *(f"left out   {things}" for things in corpus.left_out or ["nothing"]),
    ]


def _lengths(dataset: "Dataset") -> list[str]:
    """How long the documents to train on are."""
    from dsv3_plugin.data.index_file import map_sequences
    from dsv3_plugin.data.long_documents import by_powers_of_four

    lengths = map_sequences(dataset.train_prefix).lengths
    rows = [(f"from {least:,} tokens", *numbers) for least, *numbers in by_powers_of_four(lengths)]
    return _table(("to train on", "documents", "tokens"), rows)


def _table(head: Sequence[str], rows: Iterable[tuple[str, *tuple[int, ...]]]) -> list[str]:
    """Aligned columns: names to the left, numbers to the right."""
    cells = [head, *((name, *(f"{number:,}" for number in numbers)) for name, *numbers in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([name.ljust(widths[0]), *map(str.rjust, numbers, widths[1:])])
        for name, *numbers in cells
    ]


def _part(part: "Part") -> str:
    return f"{number_of(part.tokens, 'token')} in {number_of(part.documents, 'document')}"
