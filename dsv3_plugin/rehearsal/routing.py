"""Where tokens go in a rehearsal: evenly, or with more of them to one rank's experts.

A router's choice depends on numbers that nobody computes here, so it is given. Every rank routes
its tokens alike.
"""

import torch


def even_routing(
    tokens: int, experts: int, top_k: int, groups: int = 1, of_groups: int = 1
) -> torch.Tensor:
    """A routing map `[T, X]` bool in which every expert has as many tokens, as far as they go.

    Args:
        tokens: T.
        experts: X.
        top_k: experts of a token.
        groups, of_groups: node-limited routing: a token's experts lie in `of_groups` of `groups`
            equal groups (arXiv 2412.19437, section 2.1.2); 1 of 1 where there is none.
    """
    token = torch.arange(tokens)[:, None]
    choice = torch.arange(top_k)[None, :]
    in_group, per_group = experts // groups, top_k // of_groups
    # Consecutive tokens begin one group further. In a group a token's experts lie far apart: on
    # different ranks, as those of a trained router mostly do.
    group = (token + choice // per_group) % groups
    place = token // groups + choice % per_group * (in_group // per_group)
    expert = group * in_group + place % in_group
    return torch.zeros(tokens, experts, dtype=torch.bool).scatter_(1, expert, True)


def skewed_routing(
    even: torch.Tensor, favoured: slice, imbalance: float, groups: int = 1, of_groups: int = 1
) -> torch.Tensor:
    """The map with `imbalance` times as many choices of the favoured experts, as far as possible.

    A token gives up a choice of another expert for each, so that it keeps its number of experts and
    of groups. Once none that has an expert in the favoured group is left, tokens leave one of their
    groups for it.

    Args:
        even: `[T, X]`.
        favoured: the experts of the rank that has more to do.
        imbalance: its load over the mean.
        groups, of_groups: as for `even_routing`.
    """
    routing = even.clone()
    wanted = round(imbalance * int(even[:, favoured].sum()))
    for expert in range(*favoured.indices(even.shape[1])):
        missing = wanted - int(routing[:, favoured].sum())
        if missing <= 0:
            break
        _draw(routing, favoured, expert, -(-missing // (favoured.stop - expert)), groups, of_groups)
    return routing


def _draw(
    routing: torch.Tensor, favoured: slice, expert: int, share: int, groups: int, of_groups: int
) -> None:
    """Let up to `share` tokens choose an expert that they did not, in place."""
    others = routing.clone()
    others[:, favoured] = False
    free = ~routing[:, expert] & others.any(1)
    by_group = routing.unflatten(1, (groups, -1))  # [T, groups, X/groups]
    has = by_group.any(2)
    home = expert // by_group.shape[2]
    stays = has[:, home] | (has.sum(1) < of_groups)
    takers = (free & stays).nonzero().flatten()[:share]
    routing[takers, others[takers].int().argmax(1)] = False
    routing[takers, expert] = True

    # Groups of which every chosen expert can be given up.
    left = (by_group & ~others.unflatten(1, (groups, -1))).any(2)
    leaves = has & ~left
    movers = (free & ~stays & leaves.any(1)).nonzero().flatten()[: share - len(takers)]
    chosen = by_group[movers, leaves[movers].int().argmax(1)]  # [tokens, X/groups]
    by_group[movers, leaves[movers].int().argmax(1)] = False
    # The same places in the group that they go to, but for one: the favoured expert's.
    place = expert % by_group.shape[2]
    one = chosen.int().argmax(1)
    chosen[~chosen[:, place], one[~chosen[:, place]]] = False
    chosen[:, place] = True
    by_group[movers, home] = chosen
