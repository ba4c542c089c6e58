"""What a command says beside its result."""

import sys


def note(sentence: str) -> None:
    """Print a note to standard error, so that what is piped on is the result alone."""
    print(f"Note: {sentence}", file=sys.stderr)
