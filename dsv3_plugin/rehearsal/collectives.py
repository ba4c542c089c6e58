"""Collectives of ranks that share groups, against each other.

On a group its members have to issue the same, in the same order; and where two groups share ranks,
those have to come to them in one order, or each waits where the other is not.
"""

from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import chain, zip_longest

from dsv3_plugin.numbers import bytes_text
from dsv3_plugin.rehearsal.report import OF_OURS, Finding, Issued

_UNEVEN = ("alltoall", "gather", "scatter", "allgather_", "reduce_scatter_")
"""Beginnings of operations to which members may bring different amounts: counts of rows that are
split unevenly, and lists of tensors."""

_WAY_OUT = (
    f"pipeline.executor=upstream and dispatch.kind=alltoall issue none of their own; {OF_OURS}"
)
_WAY_OUT_OF_MESSAGES = (
    "precision.dtype and data.seq_length give the form of all of them; " + OF_OURS
)

Group = tuple[tuple[int, ...], int]
"""Members, and which of the groups that they have together."""

Row = Sequence[tuple[Group, Issued]]
"""What a rank issued on which group, in order."""

Rows = Mapping[int, Row]
"""The same by global rank."""


def unlike_collectives(issued: Mapping[int, Sequence[Issued]]) -> list[Finding]:
    """Where ranks would not get through their collectives together.

    Args:
        issued: by global rank, what it issued, in order.

    Returns:
        The first difference of each group; where there is none, an order in which ranks wait for
        each other.
    """
    rows = {rank: list(_of_groups(rank, row)) for rank, row in sorted(issued.items())}
    groups = dict.fromkeys(group for row in rows.values() for group, _ in row)
    findings = []
    for group in groups:
        present = {
            rank: [one for on, one in row if on == group]
            for rank, row in rows.items()
            if rank in group[0]
        }
        known: dict[int, Sequence[Issued]] = {}
        for rank, row in present.items():
            like = next((one for one in known if _heard_alike(rows[one], rows[rank], group)), None)
            if like is None:
                known[rank] = row
                continue
            difference = list(_first_difference(group[0], {like: known[like], rank: row}))
            findings += difference
            if difference:
                break
    return findings or list(_circles(rows))


def unlike_groups(made: Mapping[int, Sequence[str]]) -> list[Finding]:
    """Where ranks do not make the same groups: the first difference.

    Args:
        made: by global rank, the groups that all ranks of the world make at a time, in order.
    """
    (first, expected), *others = sorted(made.items())
    for rank, row in others:
        for number, (mine, theirs) in enumerate(zip_longest(expected, row), 1):
            if mine != theirs:
                sentence = (
                    f"ranks {first} and {rank} part at process group {number} of those that all "
                    f"ranks make together: rank {first} makes {mine or 'none'}, rank {rank} "
                    f"{theirs or 'none'}"
                )
                return [Finding(sentence, _WAY_OUT)]
    return []


def unlike_messages(forms: Mapping[int, Sequence[str]]) -> list[Finding]:
    """Where ranks exchange messages between stages that are not all of one form: the first two.

    Args:
        forms: by global rank, those of its messages.
    """
    told = [(rank, form) for rank, row in sorted(forms.items()) for form in row]
    other = next(((rank, form) for rank, form in told if form != told[0][1]), None)
    if other is None:
        return []
    (first, expected), (rank, form) = told[0], other
    sentence = (
        f"messages between stages are {expected} on rank {first}, and {form} on rank {rank}: what "
        "one end sends, the other does not receive"
    )
    return [Finding(sentence, _WAY_OUT_OF_MESSAGES)]


def _of_groups(rank: int, row: Sequence[Issued]) -> Iterator[tuple[Group, Issued]]:
    for one in row:
        if not one.to_one and rank in one.group:  # what is sent to one is not sent to all
            yield (one.group, one.twin), one


def _heard_alike(one: Row, other: Row, group: Group) -> bool:
    """Whether two ranks said the same where as many hear it as are in a group.

    In a rehearsal a rank hears itself alone. Where others would have told it of what it does not
    have (experts, which upstream's optimizers agree on), it leaves out what it would have issued.
    """
    mine, theirs = _said(one, group), _said(other, group)
    return all(mine[where] == theirs[where] for where in mine.keys() & theirs.keys())


def _said(row: Row, group: Group) -> dict[Group, list[str]]:
    """What a rank said as objects on other groups of as many members, in order."""
    told: dict[Group, list[str]] = {}
    for on, one in row:
        if one.said and on != group and len(on[0]) >= len(group[0]):
            told.setdefault(on, []).append(one.said)
    return told


def _first_difference(
    group: tuple[int, ...], issued: Mapping[int, Sequence[Issued]]
) -> Iterator[Finding]:
    (first, expected), *others = issued.items()
    for rank, row in others:
        # In a rehearsal a rank hears nothing but what it says itself; where that differs, so may
        # the amounts that ranks agree on by it.
        agreed = True
        for number, (mine, theirs) in enumerate(zip_longest(expected, row), 1):
            agreed = agreed and mine is not None and theirs is not None and mine.said == theirs.said
            if not _alike(mine, theirs, agreed):
                yield Finding(
                    f"ranks {first} and {rank} part at collective {number} of their group of "
                    f"{len(group)} ranks: rank {first} issues {_text(mine)}, rank {rank} "
                    f"{_text(theirs)}",
                    _WAY_OUT,
                )
                break


def _alike(mine: Issued | None, theirs: Issued | None, agreed: bool) -> bool:
    if mine is None or theirs is None or mine.operation != theirs.operation:
        return False
    return not agreed or mine.operation.startswith(_UNEVEN) or mine.bytes == theirs.bytes


def _circles(rows: Rows) -> Iterator[Finding]:
    """Collectives of which each has to end before the next can begin, all around.

    A collective begins after what its rank was given before, and ends when all have come to it;
    what the rank is given next begins then, but for a collective that it waits for later.
    """
    after: TopologicalSorter[tuple[Group, int]] = TopologicalSorter()
    operations: dict[tuple[Group, int], Issued] = {}
    for row in rows.values():
        numbers: dict[Group, int] = {}
        waited: tuple[Group, int] | None = None
        for group, one in row:
            numbers[group] = numbers.get(group, 0) + 1
            node = (group, numbers[group])
            operations[node] = one
            if waited is not None:
                after.add(node, waited)
            if one.waits:
                waited = node
    try:
        after.prepare()
    except CycleError as error:
        circle = list(dict.fromkeys(error.args[1]))
        told = ", then ".join(
            f"{_text(operations[node])} on a group of {len(node[0][0])} ranks (its number "
            f"{node[1]})"
            for node in circle[:4]
        )
        ranks = sorted(set(chain.from_iterable(_having(rows, node[0]) for node in circle)))
        yield Finding(
            f"ranks {', '.join(map(str, ranks[:4]))} wait for each other: they come to collectives "
            f"of different groups in different orders, {told}",
            _WAY_OUT,
        )


def _having(rows: Rows, group: Group) -> Iterator[int]:
    return (rank for rank, row in rows.items() if any(on == group for on, _ in row))


def _text(issued: Issued | None) -> str:
    if issued is None:
        return "none"
    return f"{issued.operation} of {bytes_text(issued.bytes)}"
