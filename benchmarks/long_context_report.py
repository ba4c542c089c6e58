"""What `benchmarks/long_context.py` measured, as a table and a picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv3_plugin.evaluation.facts import chance


@dataclass(frozen=True)
class Measured:
    """What was measured of a model.

    Attributes:
        name: in the table and the picture.
        parameters: of the model, how many.
        needles: the JSON of `dsv3 eval needle`, one fact in a text.
        among: the same with several facts in a text.
        losses: the JSON of `dsv3 eval loss` by the length of sequences.
    """

    name: str
    parameters: int
    needles: dict[str, Any]
    among: dict[str, Any]
    losses: dict[int, dict[str, Any]]

    @property
    def kinds(self) -> list[str]:
        """Of facts."""
        return self.needles["setting"]["kinds"]

    @property
    def by_context(self) -> dict[int, float]:
        """The loss by how much context there is at most, and half of that at least.

        Buckets of one run of `dsv3 eval loss` hold different texts, early ones little of it. Here
        the same text is cut anew for each length, and the second halves of all sequences count:
        half of the text each time.
        """
        return {
            length: losses["sets"][0]["by_position"][-1]["loss"]
            for length, losses in self.losses.items()
        }

    def by_depth(self, length: int, kind: str) -> list[tuple[float, float]]:
        """Depths and the shares of right answers there."""
        return [
            (one["depth"], one["share"])
            for one in self.needles["right"]
            if one["depth"] is not None and (one["length"], one["kind"]) == (length, kind)
        ]

    def mapping(self, lengths: Sequence[int]) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "parameters": self.parameters,
            "found": {
                kind: {length: right(self.needles, length, kind) for length in lengths}
                for kind in self.kinds
            },
            "found_among_several": {length: right(self.among, length) for length in lengths},
            "without_the_fact": {
                length: right(self.needles, length, needle=False) for length in lengths
            },
            "loss_by_context": self.by_context,
        }


def right(
    needles: dict[str, Any], length: int, kind: str | None = None, *, needle: bool = True
) -> tuple[int, int]:
    """How many questions were answered rightly at a length, and how many there were.

    Args:
        needles: the JSON of `dsv3 eval needle`.
        length: of the texts.
        kind: of the facts; None: all.
        needle: whether the fact was there.
    """
    answers = [
        one["right"]
        for one in needles["asked"]
        if one["length"] == length
        and (one["depth"] is not None) == needle
        and kind in (None, one["kind"])
    ]
    return sum(answers), len(answers)


def table(
    measured: Sequence[Measured], lengths: Sequence[int], among: int, vocabulary: int
) -> list[str]:
    """What was found and the losses, a column for each model and one for whoever guesses.

    A guess is one of the values that evaluation asks for, one of the facts of the text where it has
    several, and of the next token one as likely as any other.
    """
    rows: dict[str, list[str]] = {}

    def add(name: str, guess: str, cell: str) -> None:
        rows.setdefault(name, [guess]).append(cell)

    for one in measured:
        add("parameters", "", f"{one.parameters:,}")
        for kind in one.kinds:
            for length in lengths:
                found = percent(*right(one.needles, length, kind))
                add(f"{kind} found at {length:,}", f"{chance(kind):.2%}".replace("%", " %"), found)
        for length in lengths:
            found = percent(*right(one.among, length))
            add(f"one of {among} facts found at {length:,}", percent(1, among), found)
        alone = [
            (kind, *right(one.needles, length, kind, needle=False))
            for kind in one.kinds
            for length in lengths
        ]
        asked = sum(questions for _, _, questions in alone)
        expected = sum(chance(kind) * questions for kind, _, questions in alone)
        answered = f"{sum(answers for _, answers, _ in alone)} of {asked}"
        add("right without the fact", f"{expected:.2f} of {asked}", answered)
        for length, loss in one.by_context.items():
            name = f"loss, {length // 2 + 1:,} to {length:,} tokens of context"
            add(name, f"{math.log(vocabulary):.3f}", f"{loss:.3f}")
    return [
        f"| | a guess | {' | '.join(one.name for one in measured)} |",
        f"|---|---|{'---|' * len(measured)}",
        *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()),
    ]


def percent(part: int, of: int) -> str:
    """A share for the table."""
    return f"{part / of:.0%}".replace("%", " %")


def draw(measured: Sequence[Measured], path: Path, short: int, long: int) -> None:
    """Loss by context on the left, facts found at the full length by depth on the right.

    The first kind of facts is dashed there, the second is not.

    Args:
        measured: the models.
        path: of the picture.
        short: the length that was trained at first.
        long: the full length.
    """
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "long_context"
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for one in measured:
        losses = one.by_context
        (line,) = left.plot([*losses], [*losses.values()], "o-", markersize=3, label=one.name)
        for kind, style in zip(one.kinds, ("o--", "o-"), strict=True):
            points = zip(*one.by_depth(long, kind), strict=True)
            right.plot(*points, style, markersize=3, color=line.get_color())
    left.set_xscale("log", base=2)
    left.set_xlabel("tokens of context, at most (half of them at least)")
    left.set_ylabel("loss on files held out (nats per token)")
    left.axvline(short, color="0.7", linewidth=0.8)
    left.legend(frameon=False, fontsize=8)
    right.set_xlabel(f"depth of the fact in {long:,} tokens")
    right.set_ylabel(f"answers that are right (dashed: {measured[0].kinds[0]})")
    right.set_ylim(-0.03, 1.03)
    for axis in (left, right):
        axis.grid(alpha=0.25)
    figure.savefig(path, metadata={"Date": None})
