"""Rewards of a person's, some of which are broken."""

import os
import sys
import time
from typing import Any

from math_verify.errors import TimeoutException

from dsv3_plugin.rewards.verdict import Attempt


def by_text(attempt: Attempt) -> Any:
    """As the text says: a number, or one of many kinds of misfortune."""
    match attempt.text:
        case "raise":
            raise KeyError("no such key")
        case "hang":
            while True:
                time.sleep(60)
        case "exit":
            sys.exit(0)
        case "late":
            raise TimeoutException("Operation timed out!")
        case "die":
            os._exit(3)
        case "nan":
            return float("nan")
        case "nonsense":
            return "very good"
        case number:
            return float(number)


def process(attempt: Attempt) -> int:
    """Which one judges."""
    return os.getpid()
