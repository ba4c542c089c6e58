"""`dsv3 logits` and `dsv3 generate`: what a checkpoint computes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from dsv3_plugin.errors import UserError
from dsv3_plugin.terminal.lines import say, show_text


def logits(
    checkpoint: Annotated[Path, typer.Option(help="Folder of a run, or of checkpoints.")],
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

        was_there = out.exists()
        shape = write_logits(checkpoint, tokens, out, mtp=mtp)
    instead = ", in place of the file that was there" if was_there else ""
    say(f"wrote the logits, float32 {list(shape)}, into {out}{instead}.")


def generate(
    checkpoint: Annotated[
        Path, typer.Option(help="Folder of a run, or of checkpoints with a tokenizer.")
    ],
    prompt: Annotated[list[str], typer.Option(help="Text to continue; several are made at once.")],
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to add at most.", min=1)] = 100,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token, higher is bolder.", min=0)
    ] = 0.0,
    top_k: Annotated[
        int | None, typer.Option(help="Sample from so many likeliest tokens.", min=1)
    ] = None,
    top_p: Annotated[
        float, typer.Option(help="Sample from this share of the probability.", min=0, max=1)
    ] = 1.0,
    min_p: Annotated[
        float,
        typer.Option(
            help="Sample from tokens this times as likely as the likeliest.", min=0, max=1
        ),
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1, tokens that were there become less likely.")
    ] = 1.0,
    stop: Annotated[list[str], typer.Option(help="A string that ends the text.")] = [],  # noqa: B006
    answers: Annotated[int, typer.Option(help="Continuations of each prompt.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Of the sampling.", min=0, max=2**63 - 1)] = 0,
    drafts: Annotated[
        int,
        typer.Option(
            help="Tokens that multi-token prediction guesses ahead; the text is the same.", min=0
        ),
    ] = 0,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="Answer it as a user's turn, by the chat template."),
    ] = False,
) -> None:
    """Continue texts, or answer them."""
    refuse_without_drawing(
        temperature,
        {
            "--top-k": top_k is not None,
            "--top-p": top_p < 1,
            "--min-p": min_p > 0,
            "--answers": answers > 1,
        },
    )
    from dsv3_plugin.checkpoint.loadable import tokenizer_beside

    tokenizer_beside(checkpoint)  # or nothing is worth the wait for a model
    from dsv3_plugin.distributed.world import single_process

    with single_process():
        from dsv3_plugin.inference.from_checkpoint import continue_texts
        from dsv3_plugin.inference.requests import SamplingParameters

        sampling = SamplingParameters(
            max_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            stop=tuple(stop),
            n=answers,
            seed=seed,
        )
        for piece in continue_texts(checkpoint, prompt, sampling, drafts=drafts, chat=chat):
            show_text(piece)
    say()


def refuse_without_drawing(temperature: float, options: Mapping[str, bool]) -> None:
    """Raise UserError for options of drawing, of those that are given, where nothing is drawn."""
    stray = [option for option, given in options.items() if given]
    if stray and temperature == 0:
        raise UserError(
            f"{' and '.join(stray)} {'is' if len(stray) == 1 else 'are'} for tokens that are "
            "drawn, and --temperature 0, the default, takes the likeliest each time: add "
            "--temperature 1, or the like"
        )
