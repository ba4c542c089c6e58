"""Where a conversion leaves its manifest, and what it says to whoever reads it. No torch here."""

from pathlib import Path
from typing import Any

from dsv3_plugin.files import json_text

MANIFEST = "manifest.json"
TRAINED_LENGTH = "trained_length"
"""Key of the manifest: tokens of the sequences that the weights were trained on, where known."""


def read(root: Path) -> dict[str, Any]:
    """The manifest of a folder, empty if it has none that can be read."""
    try:
        content = json_text.read(root / MANIFEST)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
