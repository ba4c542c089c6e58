"""Who sums the gradient of what: copies that part, and sums with those who hold something else."""

from dsv3_plugin.rehearsal.replicas import unlike_sums

LAYER, EMBEDDING = "decoder.layers.3.mlp.weight", "embedding.weight"


def test_copies_whose_gradients_are_summed_have_no_findings():
    assert unlike_sums({0: {LAYER: [(0, 1)]}, 1: {LAYER: [(0, 1)]}, 2: {}}) == []
    assert unlike_sums({0: {LAYER: []}}) == []


def test_a_sum_reaches_as_far_as_groups_share_ranks():
    """The embedding's gradient: over data-parallel ranks, and first with last stage."""
    first, last = (0, 1), (6, 7)
    holds = {rank: {EMBEDDING: [first, (rank, rank + 6)]} for rank in first}
    holds |= {rank: {EMBEDDING: [last, (rank - 6, rank)]} for rank in last}
    assert unlike_sums(holds) == []
    assert unlike_sums({0: holds[0], 7: holds[7]}) == []


def test_copies_that_nobody_sums():
    """What is missing is between the stages, not in them."""
    rows = {0: {EMBEDDING: [(0, 1)], LAYER: [(0, 1)]}, 6: {EMBEDDING: [(6, 7)]}}
    (finding,) = unlike_sums(rows)
    assert finding.sentence == (f"ranks 0 and 6 both hold {EMBEDDING}, and do not sum its gradient")
    assert finding.stops


def test_a_gradient_summed_with_ranks_that_hold_something_else():
    """Experts' gradients over all data-parallel ranks, say."""
    rows = {
        rank: {
            f"experts.{rank % 2}.{name}": [(0, 1, 2, 3)] for name in ("first", "second", "third")
        }
        for rank in (0, 1)
    }
    mine, theirs = (finding.sentence for finding in unlike_sums(rows))
    assert mine == (
        "rank 0 sums with rank 1, which does not hold it, the gradient of experts.0.first (and "
        "that of 2 more parameters)"
    )
    assert "rank 1 sums with rank 0, which" in theirs
