"""`dsv3 eval`: facts found again in long texts."""

import json as json_format
import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from dsv3_plugin.errors import UserError

evaluate = typer.Typer(
    help="Evaluate a checkpoint: facts in long texts.",
    no_args_is_help=True,
)


@evaluate.callback()
def _verbs() -> None:
    """Evaluate a checkpoint: facts in long texts."""


Checkpoint = Annotated[Path, typer.Option(help="Folder of a run, or of checkpoints.")]
Changes = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CHANGE]...",
        help="model.KEY=VALUE: the same weights with other positions (model.rope_type=rope).",
    ),
]
Html = Annotated[Path | None, typer.Option(help="Write it as a page that needs nothing else.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@evaluate.command("needle")
def needle(
    checkpoint: Checkpoint,
    lengths: Annotated[
        str, typer.Option(metavar="N,N,…", help="Tokens of text, question and answer together.")
    ],
    changes: Changes = None,
    depths: Annotated[
        str,
        typer.Option(
            metavar="D,D,…", help="Where the needle is: 0 at the beginning, 1 at the end."
        ),
    ] = "0,0.25,0.5,0.75,1",
    needles: Annotated[
        int, typer.Option(help="Facts in each text; one of them is asked for.", min=1)
    ] = 1,
    kind: Annotated[
        Literal["digits", "words", "both"], typer.Option(help="What the facts are made of.")
    ] = "both",
    samples: Annotated[
        int, typer.Option(help="Questions of each kind, length and depth.", min=1)
    ] = 5,
    seed: Annotated[int, typer.Option(help="Of the facts and their places.", min=0)] = 0,
    haystack: Annotated[
        str | None,
        typer.Option(
            metavar="stdlib|FILE|FOLDER",
            help="The text; by default what the run held out, or stdlib where there is none.",
        ),
    ] = None,
    html: Html = None,
    json: Json = False,
) -> None:
    """Lay facts into real text, ask for them at its end, and count the right answers.

    Each question is asked of the same text without its fact, too.
    """
    from dsv3_plugin.cli.plan_output import refuse_other_suffix
    from dsv3_plugin.distributed.world import single_process
    from dsv3_plugin.evaluation.facts import KINDS
    from dsv3_plugin.evaluation.needle import Setting

    if html is not None:
        refuse_other_suffix(html)
    setting = Setting(
        lengths=tuple(map(int, _numbers("--lengths", lengths, whole=True))),
        depths=tuple(_numbers("--depths", depths)),
        kinds=KINDS if kind == "both" else (kind,),
        needles=needles,
        samples=samples,
        seed=seed,
    )
    setting.check()
    with single_process():
        from dsv3_plugin.cli.progress import phases
        from dsv3_plugin.evaluation.from_checkpoint import needles_of_checkpoint

        with phases() as progress:
            found, name = needles_of_checkpoint(
                checkpoint, setting, changes or (), haystack, progress
            )
    from dsv3_plugin.report.evaluation import needle as report

    subject = report.Subject(str(checkpoint), tuple(changes or ()), name)
    if html is not None:
        report.write_page(found, subject, html)
    if json:
        from dsv3_plugin.terminal.lines import say

        say(json_format.dumps(report.mapping(found, subject)))
        return
    from dsv3_plugin.terminal.console import Console

    console = Console()
    for sentence in report.sentences(found, subject):
        console.line_of(sentence)
    for one in setting.kinds:
        console.print("", report.title(one), report.grid(found, one).table(), sep="\n")


def _numbers(option: str, text: str, *, whole: bool = False) -> list[float]:
    """The numbers of a list with commas, each once, in order.

    Raises:
        UserError: it is no such list.
    """
    what = "whole numbers" if whole else "numbers"
    try:
        read = [int(word) if whole else float(word) for word in text.split(",")]
    except ValueError:
        read = []
    if not read or not all(map(math.isfinite, read)):
        raise UserError(f"{option} takes {what} with commas between them, and not '{text}'")
    return sorted(set(read))
