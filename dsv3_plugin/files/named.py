"""The paths that people name: in a recipe, where no shell has read them, as on a command line."""

import os
from pathlib import Path


def named(text: str | Path) -> Path:
    """The path of a text; `~` is the home folder. That of a user nobody knows stays as written."""
    return Path(os.path.expanduser(text))


def is_name(text: str) -> bool:
    """Whether a text can name a file everywhere: no file of any system has another in its name."""
    return "\0" not in text and text.encode(errors="replace").decode() == text
