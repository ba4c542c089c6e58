"""`dsv3 logits` and `dsv3 generate`: what a checkpoint computes."""

from pathlib import Path
from typing import Annotated

import typer

from dsv3_plugin.terminal.lines import say, show_text


def logits(
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint folder, trained or imported.")],
    tokens: Annotated[Path, typer.Option(help=".npy file, int64 [b, s].")],
    out: Annotated[Path, typer.Option(help=".npy file to write, float32 [b, s, vocab].")],
    mtp: Annotated[
        bool,
        typer.Option("--mtp", help="Of the multi-token prediction layers, [b, s, depth, vocab]."),
    ] = False,
) -> None:
    """Compute the logits of given tokens in FP32."""
    from dsv3_plugin.distributed.world import single_process

    with single_process():
        from dsv3_plugin.inference.from_checkpoint import write_logits

        write_logits(checkpoint, tokens, out, mtp=mtp)


def generate(
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint folder with its tokenizer.")],
    prompt: Annotated[str, typer.Option(help="Text to continue.")],
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to add at most.", min=1)] = 100,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token, higher is bolder.", min=0)
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Sample from this share of the probability.", min=0, max=1)
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.", min=0, max=2**63 - 1)] = 0,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="Answer it as a user's turn, by the chat template."),
    ] = False,
) -> None:
    """Continue a text, or answer it."""
    from dsv3_plugin.distributed.world import single_process

    with single_process():
        from dsv3_plugin.inference.from_checkpoint import continue_text

        for piece in continue_text(
            checkpoint,
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            chat=chat,
        ):
            show_text(piece)
    say()
