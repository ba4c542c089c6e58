"""The `dsv3` command: options and rendering, one file per group of verbs, no logic."""

from dsv3_plugin.cli.command import app, main

__all__ = ["app", "main"]
