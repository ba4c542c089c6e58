"""What `benchmarks/long_context.py` measured, as a table and a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Measured:
    """What was measured of a model.

    Attributes:
        name: in the table and the picture.
        needles: the JSON of `dsv3 eval needle`, one fact in a text.
        among: the same with several facts in a text.
        losses: the JSON of `dsv3 eval loss`.
    """

    name: str
    needles: dict[str, Any]
    among: dict[str, Any]
    losses: dict[str, Any]

    @property
    def kinds(self) -> list[str]:
        """Of facts."""
        return self.needles["setting"]["kinds"]

    @property
    def by_context(self) -> dict[int, float]:
        """The loss by how much context there was at most."""
        return {one["last"]: one["loss"] for one in self.losses["sets"][0]["by_position"]}

    def by_depth(self, length: int) -> list[tuple[float, float]]:
        """Depths and the shares of right answers there, of all kinds together."""
        shares: dict[float, list[float]] = {}
        for one in self.needles["right"]:
            if one["length"] == length and one["depth"] is not None:
                shares.setdefault(one["depth"], []).append(one["share"])
        return [(depth, sum(of) / len(of)) for depth, of in sorted(shares.items())]

    def mapping(self, lengths: Sequence[int]) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
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


def table(measured: Sequence[Measured], lengths: Sequence[int], among: int) -> list[str]:
    """What was found and the losses, a column for each model."""
    rows: dict[str, list[str]] = {}

    def add(name: str, cell: str) -> None:
        rows.setdefault(name, []).append(cell)

    for one in measured:
        for kind in one.kinds:
            for length in lengths:
                add(f"{kind} found at {length:,}", percent(*right(one.needles, length, kind)))
        for length in lengths:
            add(f"one of {among} facts found at {length:,}", percent(*right(one.among, length)))
        alone = [right(one.needles, length, needle=False) for length in lengths]
        add("right without the fact", f"{sum(of for of, _ in alone)} of {sum(n for _, n in alone)}")
        for length in lengths:
            add(f"loss at {length:,}", f"{one.by_context[length]:.3f}")
    return [
        f"| | {' | '.join(one.name for one in measured)} |",
        f"|---|{'---|' * len(measured)}",
        *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()),
    ]


def percent(part: int, of: int) -> str:
    """A share for the table."""
    return f"{part / of:.0%}".replace("%", " %")


def draw(measured: Sequence[Measured], path: Path, short: int, long: int) -> None:
    """Loss by context on the left, facts found at the full length by depth on the right.

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
        left.plot([*one.by_context], [*one.by_context.values()], "o-", markersize=3, label=one.name)
        right.plot(*zip(*one.by_depth(long), strict=True), "o-", markersize=3)
    left.set_xscale("log", base=2)
    left.set_xlabel("tokens of context, at most")
    left.set_ylabel("loss on files held out (nats per token)")
    left.axvline(short, color="0.7", linewidth=0.8)
    left.legend(frameon=False, fontsize=8)
    right.set_xlabel(f"depth of the fact in {long:,} tokens")
    right.set_ylabel("answers that are right")
    right.set_ylim(-0.03, 1.03)
    for axis in (left, right):
        axis.grid(alpha=0.25)
    figure.savefig(path, metadata={"Date": None})
