"""A reward that differs between any two answers of a model that has learned little."""

from dsv3_plugin.rewards.verdict import Attempt


def early(attempt: Attempt) -> float:
    """The share of characters that come before "m" in the alphabet."""
    text = attempt.text.lower()
    return sum("a" <= character < "m" for character in text) / max(len(text), 1)
