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


def skewed_routing(even: torch.Tensor, favoured: slice, imbalance: float) -> torch.Tensor:
    """The map with `imbalance` times as many choices of the favoured experts, as far as possible.

    A token gives up a choice of another expert for each, so that it keeps its number of experts;
    it may need a node more than the router's groups allow by that.

    Args:
        even: `[T, X]`.
        favoured: the experts of the rank that has more to do.
        imbalance: its load over the mean.
    """
    routing = even.clone()
    wanted = round(imbalance * int(even[:, favoured].sum()))
    for expert in range(*favoured.indices(even.shape[1])):
        missing = wanted - int(routing[:, favoured].sum())
        if missing <= 0:
            break
        share = -(-missing // (favoured.stop - expert))
        free = (~routing[:, expert]).nonzero().flatten()
        others = routing.clone()
        others[:, favoured] = False
        takers = free[others[free].any(1)][:share]
        given_up = others[takers].int().argmax(1)
        routing[takers, given_up] = False
        routing[takers, expert] = True
    return routing
