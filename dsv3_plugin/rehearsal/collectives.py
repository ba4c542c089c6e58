"""Collectives of ranks that share a group, against each other: the same ones, in the same order."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest

from dsv3_plugin.numbers import bytes_text
from dsv3_plugin.rehearsal.report import Finding, Issued

_UNEVEN = ("alltoall", "gather", "scatter", "allgather_", "reduce_scatter_")
"""Beginnings of operations to which members may bring different amounts: counts of rows that are
split unevenly, and lists of tensors."""

_OF_TWO = ("send", "recv", "recv_any_source")
"""Messages: what is sent to one is not sent to all (`messages`)."""


def unlike_collectives(issued: Mapping[int, Sequence[Issued]]) -> list[Finding]:
    """Where ranks of a group do not issue the same on it: the first difference of each group.

    Args:
        issued: by global rank, what it issued, in order.
    """
    by_group: dict[tuple[int, ...], dict[int, list[Issued]]] = {}
    for rank, row in sorted(issued.items()):
        for one in row:
            if one.operation.rstrip("_") not in _OF_TWO and rank in one.group:
                by_group.setdefault(one.group, {}).setdefault(rank, []).append(one)
    findings = []
    for group in by_group:
        present = {rank: by_group[group].get(rank, []) for rank in sorted(issued) if rank in group}
        findings += list(_first_difference(group, present))[:1]
    return findings


def _first_difference(
    group: tuple[int, ...], issued: Mapping[int, Sequence[Issued]]
) -> Iterator[Finding]:
    (first, expected), *others = issued.items()
    for rank, row in others:
        for number, (mine, theirs) in enumerate(zip_longest(expected, row), 1):
            if not _alike(mine, theirs):
                yield Finding(
                    f"ranks {first} and {rank} part at collective {number} of their group of "
                    f"{len(group)} ranks: rank {first} issues {_text(mine)}, rank {rank} "
                    f"{_text(theirs)}"
                )
                break


def _alike(mine: Issued | None, theirs: Issued | None) -> bool:
    if mine is None or theirs is None or mine.operation != theirs.operation:
        return False
    return mine.operation.startswith(_UNEVEN) or mine.bytes == theirs.bytes


def _text(issued: Issued | None) -> str:
    return "none" if issued is None else f"{issued.operation} of {bytes_text(issued.bytes)}"
