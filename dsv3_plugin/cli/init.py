"""`dsv3 init`: a recipe of one's own, written out with comments."""

import shlex
from typing import Annotated

import typer

from dsv3_plugin.cli import completion
from dsv3_plugin.terminal.lines import note, say


def init(
    name: Annotated[str, typer.Argument(help="NAME or NAME.yaml, the new file.")],
    origin: Annotated[
        str,
        typer.Option(
            "--from",
            help="The recipe that it is written from (name or path).",
            autocompletion=completion.recipes,
        ),
    ] = "pretrain/tiny",
    model: Annotated[
        str | None,
        typer.Option(help="Another model (name or path).", autocompletion=completion.models),
    ] = None,
    corpus: Annotated[
        str | None, typer.Option(help="What to train on: a file or folder of text, or stdlib.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Folder of a Hugging Face tokenizer, or its name on the hub."),
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="Budget (2M); the curves have their shape over it.")
    ] = None,
) -> None:
    """Write a recipe of your own, from one there is: complete, each key with its meaning."""
    from dsv3_plugin.data.new_recipe import write_recipe
    from dsv3_plugin.launch.needs import missing_texts
    from dsv3_plugin.recipe.load import load_recipe

    path, minded = write_recipe(
        name, origin, model=model, corpus=corpus, tokenizer=tokenizer, tokens=tokens
    )
    quoted = shlex.quote(str(path))
    say(f"{path} is written: `dsv3 train {quoted} --dry-run` says what it will do.")
    for sentence in (*minded, *missing_texts(load_recipe(path))):
        note(f"Note: {sentence}.")
