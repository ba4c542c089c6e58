"""What a person sees of a running run: a bar on a terminal, plain lines in a log."""

import re
from collections import deque
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from dsv3_plugin.numbers import time_text, tokens_text


def describe(record: dict[str, Any]) -> str:
    """One record of metrics.jsonl as a plain line."""
    parts = [f"step {record['iteration']}", f"{tokens_text(record['tokens'])} tokens"]
    further_mtp = (key for key in record if re.fullmatch(r"mtp_\d+_loss", key))
    for key, text in (
        ("loss", "loss {:.4f}"),
        ("mtp_loss", "mtp loss {:.4f}"),
        *((key, key.replace("_", " ") + " {:.4f}") for key in further_mtp),
        ("validation_loss", "held-out loss {:.4f}"),
        ("learning_rate", "lr {:.3g}"),
        ("grad_norm", "grad norm {:.3f}"),
        ("tokens_per_second", "{:,.0f} tokens/s"),
    ):
        if key in record:
            parts.append(text.format(record[key]))
    return "  ".join(parts)


class Pace:
    """How fast a run goes, by the clock, from its last records; saving and evaluating count."""

    def __init__(self, total_tokens: int, records: int = 50) -> None:
        self._total = total_tokens
        self._seen: deque[tuple[float, int]] = deque(maxlen=records)

    def note(self, record: dict[str, Any]) -> None:
        """Take in a record of metrics.jsonl."""
        self._seen.append((record["time"], record["tokens"]))

    @property
    def seconds_left(self) -> float | None:
        """None while there is nothing to judge by."""
        if len(self._seen) < 2:
            return None
        (began, before), (now, tokens) = self._seen[0], self._seen[-1]
        if tokens == before:
            return None
        return (self._total - tokens) * (now - began) / (tokens - before)


class ProgressDisplay:
    """Shows the records of a run as they come.

    On a terminal: one bar with tokens, losses, tokens/s and the time left. Elsewhere: one line for
    every `interval` steps, and every evaluation.
    """

    def __init__(self, total_tokens: int, interval: int, console: Console | None = None) -> None:
        self._console = console or Console()
        self._interval = interval
        self._total = total_tokens
        self._pace = Pace(total_tokens)
        self._seen: dict[str, Any] = {}
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[tokens]}"),
            # Not the whole line: the ^C that a terminal echoes has to fit on it.
            BarColumn(bar_width=max(6, min(40, self._console.width - 86))),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[numbers]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(
            "train", total=total_tokens, tokens="0 tokens", numbers="starting"
        )

    def note(self, sentence: str) -> None:
        """Show a sentence that a rank said."""
        self._console.print(escape(sentence), soft_wrap=True, highlight=False)

    def show_all(self, records: Iterable[dict[str, Any]]) -> None:
        """Show several records."""
        for record in records:
            self.show(record)

    def show(self, record: dict[str, Any]) -> None:
        """Show one record of metrics.jsonl."""
        self._seen.update(record)
        self._pace.note(record)
        if self._console.is_terminal:
            self._bar.update(
                self._task,
                completed=record["tokens"],
                tokens=f"{tokens_text(record['tokens'])}/{tokens_text(self._total)} tokens",
                numbers=self._numbers(),
            )
        elif "validation_loss" in record or record["iteration"] % self._interval == 0:
            line = describe(record)
            if "loss" in record and (left := self._pace.seconds_left):
                line += f"  {time_text(left)} left"
            self._console.print(line, soft_wrap=True, highlight=False, markup=False)

    def _numbers(self) -> str:
        parts = []
        for key, text in (
            ("loss", "loss {:.3f}"),
            ("validation_loss", "held-out {:.3f}"),
            ("tokens_per_second", "{:,.0f} tok/s"),
        ):
            if key in self._seen:
                parts.append(text.format(self._seen[key]))
        left = self._pace.seconds_left
        if left is not None:
            parts.append(f"{time_text(left)} left")
        return " · ".join(parts)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
