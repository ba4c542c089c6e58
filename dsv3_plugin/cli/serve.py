"""`dsv3 serve`: a model behind OpenAI's interface."""

from pathlib import Path
from typing import Annotated

import typer

from dsv3_plugin.errors import UserError
from dsv3_plugin.terminal.lines import finish, say


def serve(
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder of a run, or of checkpoints with a tokenizer.")
    ] = None,
    hf: Annotated[Path | None, typer.Option(help="Or a Hugging Face folder.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8000,
    cache_gib: Annotated[
        float | None,
        typer.Option(
            help="Memory of cached latents in GiB; by default what all texts that may run need, "
            "half of the free memory at most.",
            min=0,
        ),
    ] = None,
    drafts: Annotated[
        int, typer.Option(help="Tokens that multi-token prediction guesses ahead.", min=0)
    ] = 0,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens of an answer at most; by default as many as the model has positions for.",
            min=1,
        ),
    ] = None,
    request_seconds: Annotated[
        float,
        typer.Option(help="From a request's arrival to its end; 0 for as long as it takes.", min=0),
    ] = 600,
    requests_per_minute: Annotated[
        int | None,
        typer.Option(help="Requests of one address; by default without a limit.", min=1),
    ] = None,
    weights_root: Annotated[
        Path | None,
        typer.Option(
            help="Folder that clients may have other weights loaded from; by default none are."
        ),
    ] = None,
) -> None:
    """Answer OpenAI's completions and chat completions over HTTP.

    Clients have to send the key in DSV3_API_KEY, where that is set.
    """
    if checkpoint is not None and hf is not None:
        raise UserError("Both --checkpoint and --hf are given, and one model is served: leave one.")
    if checkpoint is None and hf is None:
        raise UserError("Name what is served: either --checkpoint or --hf.")
    from dsv3_plugin.checkpoint.loadable import tokenizer_beside
    from dsv3_plugin.data.tokenizer_folder import VOCABULARY_FILES, files_of
    from dsv3_plugin.files.run_folder import is_checkpoint
    from dsv3_plugin.recipe.places import weights_at

    # Nothing is worth the wait for a model without one.
    if checkpoint is not None:
        if (checkpoint / "config.json").is_file() and not is_checkpoint(weights_at(checkpoint)):
            raise UserError(f"{checkpoint} is a Hugging Face folder: name it with --hf.")
        tokenizer_beside(checkpoint)
    elif is_checkpoint(weights_at(hf)):
        raise UserError(f"{hf} is a checkpoint: name it with --checkpoint.")
    elif hf.is_dir() and not files_of(hf, VOCABULARY_FILES):
        raise UserError(
            f"{hf} has no tokenizer, by which text becomes tokens: put the model's own tokenizer "
            "files (tokenizer.json, tokenizer_config.json) there."
        )

    def said(line: str) -> None:
        say(line)
        finish()  # somebody may wait for it behind a pipe

    from dsv3_plugin.inference.server import serve as servers

    budget = None if cache_gib is None else int(cache_gib * 2**30)
    wanted = servers.ServerSettings(
        host=host,
        port=port,
        cache_bytes=budget,
        drafts=drafts,
        answer_tokens=max_tokens,
        seconds=request_seconds or None,
        per_minute=requests_per_minute,
        weights_root=weights_root,
    )
    if checkpoint is not None:
        ran = servers.serve(checkpoint, wanted, said)
    else:
        ran = servers.serve_hf(hf, wanted, said)
    if not ran:  # as was logged when it ended
        raise typer.Exit(1)
