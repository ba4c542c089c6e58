"""Ranks that hold the same piece of the model have to sum its gradient, and with nobody else."""

from collections.abc import Iterator, Mapping, Sequence

from dsv3_plugin.rehearsal.report import OF_OURS, Finding

_WAY_OUT = (
    "pipeline.executor=upstream sums without our executor's part in it, and parallel.zero1=false "
    f"with all-reduces alone; {OF_OURS}"
)

Sums = Mapping[str, Sequence[tuple[int, ...]]]
"""Parameter → the groups over which a rank sums its gradient."""


def unlike_sums(sums: Mapping[int, Sums]) -> list[Finding]:
    """Where copies of a parameter would part, or a gradient gets what is not its own.

    Args:
        sums: by global rank, of every parameter that it trains.

    Returns:
        A finding for each two ranks, with the first parameter of which it is true.
    """
    parted: dict[tuple[int, int], list[str]] = {}
    strange: dict[tuple[int, int], list[str]] = {}
    names = dict.fromkeys(name for held in sums.values() for name in held)
    for name in names:
        holders = {rank: held[name] for rank, held in sorted(sums.items()) if name in held}
        first, *others = holders
        together = _connected(first, [group for groups in holders.values() for group in groups])
        for other in others:
            if other not in together:
                parted.setdefault((first, other), []).append(name)
        for rank, groups in holders.items():
            for stranger in sorted({rank for group in groups for rank in group}):
                if stranger in sums and stranger not in holders:
                    strange.setdefault((rank, stranger), []).append(name)
    return [
        *_findings(parted, "ranks {} and {} both hold {}, and do not sum its gradient"),
        *_findings(
            strange, "rank {} sums with rank {}, which does not hold it, the gradient of {}"
        ),
    ]


def _connected(rank: int, groups: Sequence[tuple[int, ...]]) -> set[int]:
    """Whom a sum reaches from a rank, through whoever is in two of the groups."""
    reached, left = {rank}, list(groups)
    while True:
        touching = [group for group in left if not reached.isdisjoint(group)]
        if not touching:
            return reached
        left = [group for group in left if reached.isdisjoint(group)]
        reached.update(*touching)


def _findings(found: Mapping[tuple[int, int], list[str]], sentence: str) -> Iterator[Finding]:
    for (one, other), (first, *rest) in found.items():
        more = f" (and that of {len(rest):,} more parameters)" if rest else ""
        yield Finding(sentence.format(one, other, first) + more, _WAY_OUT)
