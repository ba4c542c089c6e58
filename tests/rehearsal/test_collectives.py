"""Collectives held together: the first difference is named, and what may differ is not."""

from dataclasses import replace

import pytest

from dsv3_plugin.rehearsal.collectives import unlike_collectives, unlike_groups, unlike_messages
from dsv3_plugin.rehearsal.report import Issued

PAIR, WORLD = (0, 8), (0, 1, 8, 9)
TOKENS = Issued(PAIR, "alltoall_base_", 4096)
COUNTS = Issued(PAIR, "_allgather_base_", 64)
SUM = Issued(WORLD, "allreduce_", 8192)


def test_ranks_that_do_the_same_have_no_findings():
    rows = [TOKENS, SUM, COUNTS, Issued(PAIR, "send", 1)]
    other = [Issued(PAIR, "alltoall_base_", 5000), SUM, COUNTS]  # uneven rows
    assert unlike_collectives({0: rows, 8: other, 1: [SUM], 5: []}) == []


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ([COUNTS, TOKENS, SUM], "part at collective 1 of their group of 2 ranks: rank 0 issues "
         "alltoall_base_ of 4.1 kB, rank 8 _allgather_base_ of 64 bytes"),
        ([TOKENS, SUM], "collective 2 of their group of 2 ranks: rank 0 issues _allgather_base_ "
         "of 64 bytes, rank 8 none"),
        ([TOKENS, COUNTS, Issued(WORLD, "allreduce_", 4096)], "collective 1 of their group of 4 "
         "ranks: rank 0 issues allreduce_ of 8.2 kB, rank 8 allreduce_ of 4.1 kB"),
        ([TOKENS, COUNTS], "collective 1 of their group of 4 ranks: rank 0 issues allreduce_"),
    ],
    ids=["order", "missing", "size", "absent"],
)  # fmt: skip
def test_the_first_difference_of_a_group_is_named(other, words):
    (finding,) = unlike_collectives({0: [TOKENS, SUM, COUNTS], 8: other})
    assert "ranks 0 and 8" in finding.sentence
    assert words in finding.sentence
    assert finding.stops


def test_groups_with_the_same_members_are_told_apart():
    """Each has its own order: NCCL's communicators know nothing of each other."""
    one, other = Issued(PAIR, "allreduce_", 4), Issued(PAIR, "allreduce_", 8, twin=1)
    assert unlike_collectives({0: [one, other, SUM], 8: [one, other, SUM]}) == []
    first, second = unlike_collectives({0: [one, other], 8: [one, one]})
    assert "rank 0 issues none, rank 8 allreduce_ of 4 bytes" in first.sentence
    assert "rank 0 issues allreduce_ of 8 bytes, rank 8 none" in second.sentence


def test_amounts_that_are_agreed_on_may_differ_where_ranks_say_unlike_things():
    def row(said, size):
        return [Issued(PAIR, "all_gather_object", 0, said=said), Issued(PAIR, "allreduce_", size)]

    assert unlike_collectives({0: row("a", 8), 8: row("b", 96)}) == []
    (finding,) = unlike_collectives({0: row("a", 8), 8: row("a", 96)})
    assert "part at collective 2 " in finding.sentence
    (finding,) = unlike_collectives({0: row("a", 8), 8: [*row("b", 96), COUNTS]})
    assert "part at collective 3 " in finding.sentence


def test_ranks_that_come_to_two_groups_in_opposite_orders_wait_for_each_other():
    rows = {0: [TOKENS, SUM, COUNTS], 1: [SUM], 8: [SUM, TOKENS, COUNTS]}
    (finding,) = unlike_collectives(rows)
    assert finding.stops
    assert "wait for each other" in finding.sentence
    assert "alltoall_base_ of 4.1 kB on a group of 2 ranks" in finding.sentence
    assert "allreduce_ of 8.2 kB on a group of 4 ranks" in finding.sentence


def test_what_is_waited_for_later_holds_nobody_up():
    later = replace(SUM, waits=False)
    rows = {0: [TOKENS, later, COUNTS], 1: [later], 8: [later, TOKENS, COUNTS]}
    assert unlike_collectives(rows) == []
    # But it begins after what its rank was given before.
    asynchronous, other = replace(SUM, waits=False), replace(COUNTS, group=(0, 1))
    rows = {0: [other, asynchronous], 1: [SUM, other]}
    (finding,) = unlike_collectives(rows)
    assert "ranks 0, 1 wait for each other" in finding.sentence


def test_a_circle_of_three_ranks():
    """No two of them disagree."""
    ab, bc, ca = (Issued(group, "allreduce_", 4) for group in ((0, 1), (1, 2), (0, 2)))
    assert unlike_collectives({0: [ab, ca], 1: [ab, bc], 2: [bc, ca]}) == []
    (finding,) = unlike_collectives({0: [ca, ab], 1: [ab, bc], 2: [bc, ca]})
    assert "ranks 0, 1, 2 wait for each other" in finding.sentence


def test_groups_that_all_ranks_make_are_the_same_on_all():
    assert unlike_groups({0: ["a", "b"], 4: ["a", "b"]}) == []
    (finding,) = unlike_groups({0: ["a", "b"], 4: ["a", "c"]})
    assert "ranks 0 and 4 part at process group 2 " in finding.sentence
    (finding,) = unlike_groups({0: ["a", "b"], 4: ["a"]})
    assert "rank 0 makes b, rank 4 none" in finding.sentence


def test_messages_between_stages_have_one_form():
    forms = {0: ["[64, 1, 8] in bfloat16"], 4: ["[64, 1, 8] in bfloat16", "[64, 1, 8] in float32"]}
    assert unlike_messages({0: forms[0], 2: [], 3: forms[0]}) == []
    (finding,) = unlike_messages(forms)
    assert finding.sentence.startswith(
        "messages between stages are [64, 1, 8] in bfloat16 on rank 0, and [64, 1, 8] in float32 "
        "on rank 4"
    )


def test_what_all_hear_decides_who_is_compared():
    """A rank without experts does not know that others have some, and skips their norm."""

    def row(said, *more):
        return [Issued(WORLD, "all_gather_object", 0, said=said), *more]

    norm = Issued(WORLD, "allreduce_", 4, twin=1)
    rows = {0: row("dense"), 1: row("dense"), 8: row("experts", norm), 9: row("experts", norm)}
    assert unlike_collectives(rows) == []
    (finding,) = unlike_collectives(rows | {9: row("experts")})
    assert "ranks 8 and 9 part at collective 1" in finding.sentence
