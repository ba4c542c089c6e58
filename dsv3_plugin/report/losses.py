"""What a run's losses were, read back from its metrics for pictures and comparisons. No torch here.

Records are read one by one and a few numbers are kept of each.
"""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.metrics_file import Record, number_in
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.recipe.common import Common
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.recipe.places import refuse_not_begun

CURVES = {
    "learning_rate": "learning rate",
    "batch_size": "batch (sequences)",
    "router_bias_speed": "router-bias speed γ",
    "mtp_weight": "MTP weight λ",
}
"""What changes during training, by its name in records and recipes, and what people call it."""

_MOST_NEIGHBOURS = 15
_PACED_BY = 50
"""Steps whose median is the speed."""


@dataclass
class RunLosses:
    """The numbers of a run by step; NaN where a step did not say.

    Attributes:
        name: of the run, as it was asked for.
        recipe: what it was of; None: it cannot be read (it may be of another version of dsv3).
        steps, tokens: consumed after each step.
        loss, mtp_loss: nats per token.
        used: what each step computed with, by the names of `CURVES`.
        held_out: tokens and loss of each evaluation of the held-out part.
        speeds: tokens per second of the last steps.
    """

    name: str
    recipe: Common | None = None
    steps: "array[int]" = field(default_factory=lambda: array("q"))
    tokens: "array[float]" = field(default_factory=lambda: array("d"))
    loss: "array[float]" = field(default_factory=lambda: array("d"))
    mtp_loss: "array[float]" = field(default_factory=lambda: array("d"))
    used: "dict[str, array[float]]" = field(
        default_factory=lambda: {name: array("d") for name in CURVES}
    )
    held_out: list[tuple[float, float]] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)

    @property
    def speed(self) -> float | None:
        """Tokens per second, as they are in the middle of the last steps."""
        return median(self.speeds) if self.speeds else None

    def add(self, record: Record) -> None:
        """Keep what a record says; one of neither a step nor an evaluation says nothing."""
        tokens = number_in(record, "tokens")
        if tokens is None:
            return
        if (loss := number_in(record, "loss")) is not None:
            self.steps.append(record["iteration"])
            self.tokens.append(tokens)
            self.loss.append(loss)
            self.mtp_loss.append(_or_nan(number_in(record, "mtp_loss")))
            for name, values in self.used.items():
                values.append(_or_nan(number_in(record, name)))
            if (speed := number_in(record, "tokens_per_second")) is not None:
                self.speeds = [*self.speeds[1 - _PACED_BY :], speed]
        evaluated = number_in(record, "validation_loss")
        if evaluated is not None and not record.get("held_out_set"):
            self.held_out.append((tokens, evaluated))

    def loss_at(self, tokens: float) -> float | None:
        """The loss of the last step by so many tokens; None: it has not begun."""
        last = None
        for at, loss in zip(self.tokens, self.loss, strict=True):
            if at > tokens:
                break
            last = loss
        return last


def losses_of(run: RunFolder, name: str) -> RunLosses:
    """The losses of a run.

    Args:
        run: its folder.
        name: what to call it.

    Raises:
        UserError: it has taken no step.
    """
    refuse_not_begun(run)
    found = RunLosses(name, _recipe(run))
    for record in run.metrics.stream():
        found.add(record)
    if not found.steps:
        raise UserError(f"{run.root} has no loss in a metrics.jsonl yet: wait for its first step.")
    return found


def means(values: Sequence[float], width: int | None = None) -> list[float]:
    """The mean of each value and its neighbours, of which there are fewer at both ends.

    What is no number does not count.

    Args:
        values: one after another.
        width: how many a mean is of; None: a tenth of them, and no more than show a line.
    """
    half = (min(_MOST_NEIGHBOURS, len(values) // 10) if width is None else width) // 2
    found = []
    for at in range(len(values)):
        around = values[max(0, at - half) : at + half + 1]
        numbers = [value for value in around if not math.isnan(value)]
        found.append(sum(numbers) / len(numbers) if numbers else math.nan)
    return found


def names_apart(paths: Sequence[str]) -> list[str]:
    """Short names of folders: the last parts of their paths, as many as tell them apart."""
    parts = [path.rstrip("/").split("/") for path in paths]
    for last in range(1, max(map(len, parts)) + 1):
        short = ["/".join(one[-last:]) for one in parts]
        if len(set(short)) == len(short):
            return short
    return list(paths)


def _recipe(run: RunFolder) -> Common | None:
    try:
        return load_recipe(run.recipe) if run.recipe.is_file() else None
    except UserError:
        return None


def _or_nan(number: float | None) -> float:
    return math.nan if number is None else number
