"""Where a rehearsal's tokens go: as many experts and groups as a router would choose."""

import pytest
import torch

from dsv3_plugin.rehearsal.routing import even_routing, skewed_routing

TOKENS, EXPERTS, TOP_K, PER_RANK = 512, 256, 8, 4
LIMITS = [(1, 1), (8, 4)]


def _groups(routing: torch.Tensor, groups: int) -> torch.Tensor:
    """Of each token, how many groups its experts lie in."""
    return routing.unflatten(1, (groups, -1)).any(2).sum(1)


@pytest.mark.parametrize(("groups", "of_groups"), LIMITS)
def test_an_even_map_gives_every_expert_as_many_tokens(groups: int, of_groups: int) -> None:
    even = even_routing(TOKENS, EXPERTS, TOP_K, groups, of_groups)
    assert set(even.sum(0).tolist()) == {TOKENS * TOP_K // EXPERTS}
    assert set(even.sum(1).tolist()) == {TOP_K}
    assert set(_groups(even, groups).tolist()) == {of_groups}


@pytest.mark.parametrize("rank", [0, 37])
@pytest.mark.parametrize("imbalance", [1, 1.2, 5, 14, 24])
@pytest.mark.parametrize(("groups", "of_groups"), LIMITS)
def test_a_skewed_map_is_within_the_routers_limits(
    groups: int, of_groups: int, imbalance: float, rank: int
) -> None:
    even = even_routing(TOKENS, EXPERTS, TOP_K, groups, of_groups)
    favoured = slice(rank * PER_RANK, (rank + 1) * PER_RANK)
    skewed = skewed_routing(even, favoured, imbalance, groups, of_groups)
    assert set(skewed.sum(1).tolist()) == {TOP_K}
    assert int(_groups(skewed, groups).max()) <= of_groups
    load = int(skewed[:, favoured].sum()) / int(even[:, favoured].sum())
    assert load == pytest.approx(imbalance, rel=0.05)


def test_one_rank_cannot_have_more_than_its_experts_take() -> None:
    even = even_routing(TOKENS, EXPERTS, TOP_K, 8, 4)
    skewed = skewed_routing(even, slice(0, PER_RANK), EXPERTS // PER_RANK, 8, 4)
    assert int(skewed[:, :PER_RANK].sum()) == TOKENS * PER_RANK
    assert int(_groups(skewed, 8).max()) <= 4


def test_experts_of_a_rank_may_lie_in_several_groups() -> None:
    even = even_routing(TOKENS, 16, 4, 8, 2)
    skewed = skewed_routing(even, slice(0, 8), 1.5, 8, 2)
    assert int(skewed[:, :8].sum()) == 1.5 * int(even[:, :8].sum())
    assert int(_groups(skewed, 8).max()) <= 2
