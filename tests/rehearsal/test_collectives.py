"""Collectives held together: the first difference is named, and what may differ is not."""

import pytest

from dsv3_plugin.rehearsal.collectives import unlike_collectives
from dsv3_plugin.rehearsal.report import Issued

PAIR, WORLD = (0, 8), (0, 1, 8, 9)
TOKENS = Issued(PAIR, "alltoall_base_", 4096)
COUNTS = Issued(PAIR, "_allgather_base_", 64)
SUM = Issued(WORLD, "allreduce_", 8192)


def test_ranks_that_do_the_same_have_no_findings():
    rows = [TOKENS, SUM, COUNTS, Issued(PAIR, "send", 1)]
    other = [
        SUM,
        Issued(PAIR, "alltoall_base_", 5000),
        COUNTS,
    ]  # uneven rows; another group between
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
