"""`dsv3 model`: from a Hugging Face config to YAML."""

from pathlib import Path
from typing import Annotated

import typer

from dsv3_plugin.cli.examples import examples
from dsv3_plugin.cli.notes import note
from dsv3_plugin.terminal.lines import say_all

model = typer.Typer(help="Models: from a Hugging Face config to YAML.", no_args_is_help=True)


@model.command("from-hf", epilog=examples("model from-hf"))
def from_hf(
    config: Annotated[Path, typer.Argument(help="config.json of the DeepSeek-V2/V3 family.")],
    out: Annotated[
        Path | None, typer.Option(help="YAML file to write; without it, standard output.")
    ] = None,
) -> None:
    """Write the model YAML of a Hugging Face config."""
    from dsv3_plugin.checkpoint.absent import refuse_no_folder
    from dsv3_plugin.recipe.hf_config import read_hf_model

    if config.suffix != ".json" and not config.exists():
        refuse_no_folder(config, "a Hugging Face folder")
    found, assumed = read_hf_model(config)
    for sentence in assumed:
        note(sentence)
    if out is None:
        say_all(found.to_yaml().splitlines())
    else:
        found.write(out)
