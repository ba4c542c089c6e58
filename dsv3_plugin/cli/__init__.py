"""The `dsv3` command: options and rendering, one file per group of verbs, no logic."""

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of the console script; see `command.main`.

    Ctrl-C ends it quietly from the start, also while its modules are loaded.
    """
    try:
        from dsv3_plugin.cli import command

        command.main()
    except KeyboardInterrupt:
        sys.exit(130)  # as a shell shows it
