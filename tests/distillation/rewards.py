"""Rewards of a person's."""

from dsv3_plugin.rewards.verdict import Attempt


def anything(attempt: Attempt) -> float:
    """Every answer is right."""
    return 1.0
