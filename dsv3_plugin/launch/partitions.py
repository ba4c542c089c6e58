"""Which partitions Slurm has, as far as it is asked here. No torch here."""

import shutil
import subprocess

from dsv3_plugin.recipe.validation import nearest

_PATIENCE_S = 5.0
_NAMED = 8
"""Partitions that a sentence has."""


def no_such_partition(name: str | None) -> str | None:
    """A sentence on a partition that the Slurm here does not have; None: it has it, or does not
    say."""
    known = _partitions() if name is not None else set()
    if not known or name in known:
        return None
    near = nearest(name, sorted(known)) or f" (it has {', '.join(sorted(known)[:_NAMED])})"
    return (
        f"launch.partition: the Slurm here has no {name}{near}: name another in the cluster's file"
    )


def _partitions() -> set[str]:
    """All of them, hidden ones too; none where Slurm does not say."""
    if shutil.which("sinfo") is None:
        return set()
    command = ["sinfo", "--all", "--noheader", "--format=%R"]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return set()
    return set() if answer.returncode else {*answer.stdout.split()}
