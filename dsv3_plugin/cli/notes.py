"""What a command says beside its result."""

from dsv3_plugin.terminal import lines


def note(sentence: str) -> None:
    """Print a note to standard error, so that what is piped on is the result alone."""
    lines.note(f"Note: {sentence}")
