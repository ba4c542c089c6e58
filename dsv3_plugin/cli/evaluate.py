"""`dsv3 eval`: facts found again in long texts, the loss by position, the harness' tasks."""

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from dsv3_plugin.cli.examples import examples
from dsv3_plugin.errors import UserError
from dsv3_plugin.terminal.lines import say_json

evaluate = typer.Typer(
    help="Evaluate a checkpoint: facts in long texts, loss by position, lm-evaluation-harness.",
    no_args_is_help=True,
)

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


@evaluate.command("needle", epilog=examples("eval needle"))
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
    from dsv3_plugin.cli.plan_output import refuse_no_page
    from dsv3_plugin.distributed.world import single_process
    from dsv3_plugin.evaluation.facts import KINDS
    from dsv3_plugin.evaluation.needle import Setting

    if html is not None:
        refuse_no_page(html)
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
            found, text = needles_of_checkpoint(
                checkpoint, setting, changes or (), haystack, progress
            )
    from dsv3_plugin.report.evaluation import needle as report
    from dsv3_plugin.report.evaluation.subject import Subject
    from dsv3_plugin.terminal.console import Console

    subject = Subject(str(checkpoint), tuple(changes or ()))
    if html is not None:
        report.write_page(found, subject, text, html)
    if json:
        say_json(report.mapping(found, subject, text))
        return
    console = Console()
    for sentence in report.sentences(found, subject, text):
        console.line_of(sentence)
    for one in setting.kinds:
        console.print("", report.title(one), report.grid(found, one).table(), sep="\n")


@evaluate.command("loss", epilog=examples("eval loss"))
def loss(
    checkpoint: Checkpoint,
    changes: Changes = None,
    by_position: Annotated[
        bool, typer.Option("--by-position", help="By tokens of context, in powers of two.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|PREFIX",
            help="A dataset of `dsv3 data build`, or PREFIX.bin and .idx; by default what the run "
            "held out.",
        ),
    ] = None,
    seq_length: Annotated[
        int | None,
        typer.Option(help="Tokens of a sequence; by default as the run trained.", min=1),
    ] = None,
    sequences: Annotated[
        int, typer.Option(help="Of each set at most, spread evenly over it.", min=1)
    ] = 64,
    html: Html = None,
    json: Json = False,
) -> None:
    """Compute the loss on held-out text, in nats per token."""
    from dsv3_plugin.cli.plan_output import refuse_no_page
    from dsv3_plugin.distributed.world import single_process

    if html is not None:
        refuse_no_page(html)
    with single_process():
        from dsv3_plugin.cli.progress import phases
        from dsv3_plugin.evaluation.from_checkpoint import losses_of_checkpoint

        with phases() as progress:
            found = losses_of_checkpoint(
                checkpoint,
                changes=changes or (),
                data=data,
                seq_length=seq_length,
                most=sequences,
                progress=progress,
            )
    from dsv3_plugin.report.evaluation import loss as report
    from dsv3_plugin.report.evaluation.subject import Subject
    from dsv3_plugin.terminal.console import Console

    subject = Subject(str(checkpoint), tuple(changes or ()))
    if html is not None:
        report.write_page(found, subject, html)
    if json:
        say_json(report.mapping(found, subject))
        return
    console = Console()
    console.line_of(f"{subject.name}: loss")
    console.print("", report.totals(found).table(), sep="\n")
    if by_position:
        console.print("", report.by_position(found).table(), sep="\n")


@evaluate.command("harness", epilog=examples("eval harness"))
def harness(
    checkpoint: Checkpoint,
    tasks: Annotated[
        str, typer.Option(metavar="TASK,TASK,…", help="Tasks, groups, tags or files.")
    ],
    include_path: Annotated[
        Path | None, typer.Option(help="A folder of tasks beside the harness' own.")
    ] = None,
    shots: Annotated[
        int | None,
        typer.Option(help="Examples before each question; by default as the task says.", min=0),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Questions of each task; by default all.", min=1)
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask by the tokenizer's chat template.")
    ] = False,
    json: Json = False,
) -> None:
    """Ask a checkpoint the tasks of lm-evaluation-harness.

    Needs `pip install 'dsv3_plugin[harness]'`. Data that tasks name on the hub are downloaded.
    """
    from dsv3_plugin.distributed.world import single_process

    with single_process():
        from dsv3_plugin.cli.progress import phases
        from dsv3_plugin.evaluation.harness import Wanted, evaluate

        names = [name for name in tasks.split(",") if name]
        if not names:
            raise UserError("--tasks names none.")
        wanted = Wanted(names, include_path, shots, limit, chat)
        with phases() as progress:
            results = evaluate(checkpoint, wanted, progress)
    from dsv3_plugin.report.evaluation import harness as report
    from dsv3_plugin.terminal.console import Console

    if json:
        say_json(report.mapping(results, str(checkpoint)))
        return
    console = Console()
    console.line_of(f"{checkpoint}: lm-evaluation-harness")
    console.print("", report.grid(results).table(), sep="\n")


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
