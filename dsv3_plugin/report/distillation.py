"""What came of a distillation, for people and for programs."""

from collections.abc import Iterator, Mapping
from typing import Any

from dsv3_plugin.distillation.job import Distilled
from dsv3_plugin.numbers import number_of


def mapping(found: Distilled) -> dict[str, Any]:
    """All of it as JSON has it."""
    return {
        "out": str(found.out),
        "problems": found.problems,
        "finished": found.counts["problems"],
        "answers": found.counts["answers"],
        "kept": found.counts["kept"],
        "samples": found.counts["samples"],
        "rejected": dict(found.rejected),
        "problems_without": found.barren,
        "left_out": [one.model_dump() for one in found.left_out],
        "unfinished": {
            "problems": found.unfinished.problems,
            "failures": dict(found.unfinished.failures),
        },
        "repeated": dict(found.repeated),
    }


def sentences(found: Distilled) -> Iterator[str]:
    """A line of what is kept, and one for each kind of thing that is not."""
    counts = found.counts
    yield (
        f"{found.out}: {counts['samples']:,} samples of {counts['kept']:,} of "
        f"{number_of(counts['answers'], 'answer')} to {number_of(counts['problems'], 'problem')}"
    )
    if found.rejected:
        yield f"rejected: {_counted(found.rejected)}"
    if found.barren:
        yield f"no answer kept: {number_of(found.barren, 'problem')}"
    for one in found.left_out:
        yield f"left out: {one}"
    if found.repeated:
        yield f"asked again: {_counted(found.repeated)}"
    if found.unfinished.problems:
        yield (
            f"unfinished: {number_of(found.unfinished.problems, 'problem')} "
            f"({_counted(found.unfinished.failures)}); the same command goes on with them"
        )


def _counted(reasons: Mapping[str, int]) -> str:
    return "; ".join(f"{count:,} {why}" for why, count in reasons.items())
