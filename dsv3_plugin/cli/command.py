"""The `dsv3` command: its verbs, and how each of its errors becomes one sentence.

Every verb imports what it needs inside its body, so that `dsv3 plan` and `dsv3 schedule` never
pay for torch.
"""

import difflib
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from dsv3_plugin.cli.balance import balance
from dsv3_plugin.cli.compare import inspect, verify
from dsv3_plugin.cli.convert import export, import_
from dsv3_plugin.cli.data import data
from dsv3_plugin.cli.distill import distill
from dsv3_plugin.cli.doctor import doctor
from dsv3_plugin.cli.evaluate import evaluate
from dsv3_plugin.cli.examples import examples
from dsv3_plugin.cli.infer import generate, logits
from dsv3_plugin.cli.init import init
from dsv3_plugin.cli.launch import launch
from dsv3_plugin.cli.look import diff, plot, runs
from dsv3_plugin.cli.model import model
from dsv3_plugin.cli.plan import plan
from dsv3_plugin.cli.recipes import explain as explain_key
from dsv3_plugin.cli.recipes import recipes
from dsv3_plugin.cli.rehearse import rehearse
from dsv3_plugin.cli.runs import cancel, logs, status
from dsv3_plugin.cli.schedule import schedule
from dsv3_plugin.cli.serve import serve
from dsv3_plugin.cli.train import args, train
from dsv3_plugin.cli.version import print_versions
from dsv3_plugin.errors import UserError
from dsv3_plugin.terminal import lines

_SIGPIPE = 128 + signal.SIGPIPE
"""How a shell shows that nobody read what a command had to say."""

app = typer.Typer(
    name="dsv3",
    help="Train DeepSeek-V3-style models with Megatron-Core.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def dsv3(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=print_versions,
            is_eager=True,
            help="Print the versions of dsv3 and of what it builds on.",
        ),
    ] = False,
) -> None:
    """Train DeepSeek-V3-style models with Megatron-Core."""
    try:
        Path.cwd()
    except FileNotFoundError as error:  # libraries end the process without a word of it
        raise UserError(
            "the folder in which dsv3 was started has been removed: change to another, and start "
            "it again."
        ) from error


for _name, _verb in {
    "recipes": recipes,
    "explain": explain_key,
    "init": init,
    "train": train,
    "args": args,
    "launch": launch,
    "status": status,
    "logs": logs,
    "cancel": cancel,
    "runs": runs,
    "diff": diff,
    "plot": plot,
    "plan": plan,
    "rehearse": rehearse,
    "schedule": schedule,
    "logits": logits,
    "generate": generate,
    "serve": serve,
    "distill": distill,
    "import": import_,
    "export": export,
    "verify": verify,
    "inspect": inspect,
    "balance": balance,
    "doctor": doctor,
}.items():
    app.command(_name, epilog=examples(_name))(_verb)
app.command("load", hidden=True)(balance)  # as it was called at first
app.add_typer(model, name="model")
app.add_typer(data, name="data")
app.add_typer(evaluate, name="eval")

_OF_RANGES = (
    (
        r"^Invalid value for '(.+?)': Input should be greater than or equal to (\S+)$",
        r"\1 has to be at least \2",
    ),
    (
        r"^Invalid value for '(.+?)': Input should be less than or equal to (\S+)$",
        r"\1 may be \2 at most",
    ),
    (r"^Invalid value for '(.+?)': Input should be a valid number\b.*", r"\1 has to be a number"),
    (
        r"^Invalid value for '(.+?)': Input should be a valid integer\b.*",
        r"\1 has to be a whole number",
    ),
)
"""What typer says of no number, or one outside its range, and how it is said here."""


def main() -> None:
    """Entry point of the console script: whatever goes wrong becomes one sentence.

    Exit code 2 for what a person can mend, 1 for a fault of ours; DSV3_DEBUG=1 shows where.
    """
    if not sys.warnoptions:  # a library's warnings are for developers; `-W default` shows them
        warnings.simplefilter("ignore")
    lines.prepare()
    try:
        code = app(standalone_mode=False, prog_name="dsv3") or 0
        lines.finish()
        sys.exit(code)
    except lines.Unwritable as error:
        lines.abandon(sys.stdout)
        if not error.unread:
            lines.note(f"dsv3: {error}")
        sys.exit(_SIGPIPE if error.unread else 2)
    except typer.exceptions.TyperException as error:
        asked_nothing = error.format_message().startswith("Usage:")
        if asked_nothing:
            print(error.format_message(), file=sys.stderr)
        else:
            lines.note(usage_sentence(error))
        sys.exit(2)
    except typer.Abort:  # Ctrl-C
        sys.exit(130)
    except Exception as error:
        if os.environ.get("DSV3_DEBUG") == "1":
            raise
        sentence, code = explain(error)
        lines.note(f"dsv3: {sentence}")
        sys.exit(code)


def usage_sentence(error: typer.exceptions.TyperException) -> str:
    """What is wrong with a command line, and where to read how it is written."""
    if hasattr(error, "possibilities"):
        error.possibilities = _near(error.option_name, error.possibilities or ())
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "dsv3"
    said = error.format_message().rstrip(".")
    for theirs, ours in _OF_RANGES:
        said = re.sub(theirs, ours, said)
    return f"dsv3: {said} (see {command} --help)."


def _near(option: str, known: Iterable[str]) -> list[str]:
    """Options that a wrong one may stand for; typer looks at dashes too, which all have."""
    names = {name.lstrip("-"): name for name in known}
    return [names[near] for near in difflib.get_close_matches(option.lstrip("-"), names)]


def explain(error: Exception) -> tuple[str, int]:
    """The sentence and the exit code for what ended a command."""
    if isinstance(error, UserError):
        return f"{str(error).removesuffix('.')}.", 2
    if isinstance(error, OSError) and error.strerror:
        about = f"{error.filename}: " if error.filename is not None else ""
        return f"{about}{error.strerror}.", 2
    first = str(error).strip().partition("\n")[0]
    what = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return f"unexpected {what} (a fault of dsv3; DSV3_DEBUG=1 shows where it happened).", 1
