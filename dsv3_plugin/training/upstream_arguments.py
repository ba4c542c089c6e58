"""A recipe's command line through upstream's own parser, whose refusals become sentences."""

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path

from megatron.training.argument_utils import gpt_config_from_args
from megatron.training.arguments import parse_and_validate_args, parse_args, validate_args

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.atomic import replace_file
from dsv3_plugin.machine import Machine
from dsv3_plugin.model import SPEC
from dsv3_plugin.recipe.arguments import megatron_arguments
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.training.patches import TABLE
from dsv3_plugin.upstream import patching

_TITLE = "--- arguments ---"
"""Above them, where they are printed: on rank 0."""


class RefusedByUpstream(UserError):
    """Upstream refuses settings.

    Args:
        message: what it says.

    Attributes:
        message: the same.
    """

    def __init__(self, message: str) -> None:
        super().__init__(f"Megatron refuses these settings: {message.rstrip('.')}.")
        self.message = message


def check(recipe: Recipe, machine: Machine) -> None:
    """Let upstream look at the recipe's command line and its model, and keep nothing of it.

    Raises:
        RefusedByUpstream: as its own validation says.
    """
    patching.apply(TABLE)
    line = megatron_arguments(recipe, machine, SPEC)
    told = io.StringIO()  # eight hundred lines, which `parse` keeps
    with _command_line(line), refusals_as_sentences(), contextlib.redirect_stdout(told):
        args = parse_args()
        validate_args(args)
        gpt_config_from_args(args)


def parse(arguments: list[str], told_in: Path | None = None) -> None:
    """Give upstream its command line.

    Args:
        arguments: that line.
        told_in: the file for all that it prints of them, on rank 0; None: that is not kept.

    Raises:
        RefusedByUpstream: as its own validation says.
    """
    told = io.StringIO()
    with _command_line(arguments), refusals_as_sentences(), contextlib.redirect_stdout(told):
        parse_and_validate_args()
    text = told.getvalue()
    if told_in is not None and _TITLE in text and told_in.parent.is_dir():
        replace_file(told_in, text.encode())


@contextlib.contextmanager
def _command_line(arguments: list[str]) -> Iterator[None]:
    """Upstream reads the process's own command line, and no other; afterwards it is as it was."""
    before, sys.argv = sys.argv, ["dsv3", *arguments]
    try:
        yield
    finally:
        sys.argv = before


@contextlib.contextmanager
def refusals_as_sentences() -> Iterator[None]:
    """What upstream's parser and validation raise becomes a sentence.

    Raises:
        RefusedByUpstream: as it says.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            yield
    except SystemExit as end:  # argparse, on an unknown flag or a wrong value in megatron_args
        sentence = complaint.getvalue().strip().split("\n")[-1].partition("error: ")[2]
        if sentence.startswith("unrecognized arguments"):  # ours are none of them
            sentence += " (in megatron_args)"
        raise RefusedByUpstream(sentence) from end
    except (AssertionError, ValueError) as error:
        raise RefusedByUpstream(str(error)) from error
