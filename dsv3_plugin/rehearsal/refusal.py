"""Upstream's refusals as findings: in its words, with the flags that they are about."""

import argparse
import functools
import re

from megatron.training.arguments import add_megatron_arguments

from dsv3_plugin.rehearsal.report import Finding
from dsv3_plugin.rehearsal.sentence import sentence_of

_NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)+")
"""Of a flag with dashes, or of a field of a configuration."""
_NAMED = 3
"""Flags that a way out tells of."""


def refusal(what: str, message: str) -> Finding:
    """What upstream has against something.

    Args:
        what: the settings, or the finished configuration.
        message: what it says.
    """
    sentence = sentence_of(message)
    whole = "" if sentence == " ".join(message.split()).rstrip(".") else message
    return Finding(f"Megatron refuses {what}: {sentence}", _way_out(message), whole=whole)


def _way_out(message: str) -> str:
    flags = flags_named(message)[:_NAMED]
    if not flags:
        return (
            "`dsv3 args` shows the flags that the recipe gives Megatron, and megatron_args.FLAG "
            "changes one"
        )
    told = " and ".join(f"--{flag}" for flag in flags)
    keys = " or ".join(f"megatron_args.{flag}" for flag in flags)
    return f"`dsv3 args` shows what the recipe gives for {told}, and {keys} changes it"


def flags_named(message: str) -> list[str]:
    """Upstream's flags that a message of it names, with dashes or as fields."""
    names = dict.fromkeys(name.replace("_", "-") for name in _NAME.findall(message))
    return [name for name in names if name in _flags()]


@functools.cache
def _flags() -> frozenset[str]:
    parser = add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    return frozenset(flag.removeprefix("--") for flag in parser._option_string_actions)
