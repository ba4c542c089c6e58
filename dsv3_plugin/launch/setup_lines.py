"""The lines of shell in a cluster's file, read by bash before a job's script runs them."""

import os
import shutil
import subprocess
from collections.abc import Sequence

from dsv3_plugin.errors import UserError

_PATIENCE_S = 60


def refuse_unreadable(lines: Sequence[str], cluster: str) -> None:
    """Raise UserError for a line of `launch.setup` that bash cannot read; none is run.

    Args:
        lines: each a command of its own.
        cluster: whose file they are in.
    """
    bash = shutil.which("bash")
    for line in lines if bash is not None else ():
        try:
            read = subprocess.run(
                [bash, "-n", "-c", line],
                env={**os.environ, "LC_ALL": "C"},
                capture_output=True,
                text=True,
                timeout=_PATIENCE_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired, ValueError):  # its own account on the nodes
            return
        if read.returncode:
            why = (read.stderr.strip().splitlines() or ["it cannot be parsed"])[0]
            raise UserError(
                f"launch.setup of {cluster}: bash cannot read the line {line} "
                f"({why.rpartition(': line ')[2].partition(': ')[2] or why}): each is a command of "
                "its own, so write what belongs together in one line."
            )
