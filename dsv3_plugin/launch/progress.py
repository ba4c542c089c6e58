"""What a person sees of a running run: a bar on a terminal, plain lines in a log."""

import contextlib
import math
import re
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from dsv3_plugin.files.metrics_file import number_in
from dsv3_plugin.numbers import time_text, tokens_text
from dsv3_plugin.terminal.console import Console
from dsv3_plugin.terminal.lines import Unwritable


def describe(record: dict[str, Any]) -> str:
    """One record of metrics.jsonl as a plain line."""
    parts = [f"step {record['iteration']}"]
    if (tokens := number_in(record, "tokens")) is not None:
        parts.append(f"{tokens_text(tokens)} tokens")
    held_out = f"held-out {record.get('held_out_set', '')}".strip()
    further_mtp = (key for key in record if re.fullmatch(r"mtp_\d+_loss", key))
    for key, text in (
        ("loss", "loss {:.4f}"),
        ("mtp_loss", "mtp loss {:.4f}"),
        *((key, key.replace("_", " ") + " {:.4f}") for key in further_mtp),
        ("validation_loss", f"{held_out} loss {{:.4f}}"),
        ("rl/reward", "reward {:.3f}"),
        ("rl/held_out_reward", "held-out reward {:.3f}"),
        ("learning_rate", "lr {:.3g}"),
        ("grad_norm", "grad norm {:.3f}"),
        ("tokens_per_second", "{:,.0f} tokens/s"),
    ):
        if (value := number_in(record, key)) is not None:
            parts.append(text.format(value))
    return "  ".join(parts)


class Pace:
    """How fast a run goes, by the clock, from its last records; saving and evaluating count."""

    def __init__(self, total_tokens: int, records: int = 50) -> None:
        self._total = total_tokens
        self._seen: deque[tuple[float, float]] = deque(maxlen=records)

    def note(self, record: dict[str, Any]) -> None:
        """Take in a record of metrics.jsonl; one that tells no time or no tokens says nothing."""
        now, tokens = number_in(record, "time"), number_in(record, "tokens")
        if now is not None and tokens is not None and math.isfinite(now) and math.isfinite(tokens):
            self._seen.append((now, tokens))

    @property
    def seconds_left(self) -> float | None:
        """None while there is nothing to judge by."""
        if len(self._seen) < 2:
            return None
        (began, before), (now, tokens) = self._seen[0], self._seen[-1]
        if tokens <= before or now < began:  # nothing was trained between, or clocks differ
            return None
        return (self._total - tokens) * (now - began) / (tokens - before)


class ProgressDisplay:
    """Shows the records of a run as they come.

    On a terminal: one bar with tokens, losses, tokens/s and the time left. Elsewhere: one line for
    every `interval` steps, and every evaluation.

    Attributes:
        unwritable: why nothing is shown any more, None as long as it is.
    """

    def __init__(self, total_tokens: int, interval: int, console: Console | None = None) -> None:
        self.unwritable: Unwritable | None = None
        self._console = console or Console()
        self._interval = interval
        self._total = total_tokens
        self._pace = Pace(total_tokens)
        self._seen: dict[str, Any] = {}
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[tokens]}", markup=False),
            # Not the whole line: the ^C that a terminal echoes has to fit on it.
            BarColumn(bar_width=max(6, min(40, self._console.width - 86))),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[numbers]}", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
            auto_refresh=False,  # it would be a thread, with nobody to tell that it cannot write
        )
        self._task = self._bar.add_task(
            "train", total=total_tokens, tokens="0 tokens", numbers="starting"
        )

    def note(self, sentence: str) -> None:
        """Show a sentence that a rank said."""
        with self._while_writable():
            self._console.line_of(sentence)

    def show_all(self, records: Iterable[dict[str, Any]]) -> None:
        """Show records of metrics.jsonl, and that the run still goes on."""
        with self._while_writable():
            for record in records:
                self._show(record)
            self._bar.refresh()

    def _show(self, record: dict[str, Any]) -> None:
        if "held_out_set" not in record:
            self._seen.update(record)
        self._pace.note(record)
        if self._console.is_terminal:
            tokens = number_in(self._seen, "tokens") or 0
            self._bar.update(
                self._task,
                completed=tokens,
                tokens=f"{tokens_text(tokens)}/{tokens_text(self._total)} tokens",
                numbers=self._numbers(),
            )
        elif "validation_loss" in record or record["iteration"] % self._interval == 0:
            line = describe(record)
            if "loss" in record and (left := self._pace.seconds_left):
                line += f"  {time_text(left)} left"
            self._console.line_of(line)

    def _numbers(self) -> str:
        parts = []
        for key, text in (
            ("loss", "loss {:.3f}"),
            ("validation_loss", "held-out {:.3f}"),
            ("tokens_per_second", "{:,.0f} tok/s"),
        ):
            if (value := number_in(self._seen, key)) is not None:
                parts.append(text.format(value))
        left = self._pace.seconds_left
        if left is not None:
            parts.append(f"{time_text(left)} left")
        return " · ".join(parts)

    @contextlib.contextmanager
    def _while_writable(self) -> Iterator[None]:
        """Remembers that nothing can be shown any more; the run is not to end by it."""
        try:
            yield
        except Unwritable as error:
            self.unwritable = error

    def __enter__(self) -> Self:
        with self._while_writable():
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._while_writable():
            self._bar.stop()
