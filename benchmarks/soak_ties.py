"""Places where another token, or another expert, is as good, of answers `soak.py` compares."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

NEAR = 1e-5
"""Between the two best of a place where another token is no fault, and two scores of experts."""


def tokens_as_good(
    model: Any, text: Sequence[int], two: Sequence[int], sampling: Any, key: tuple[int, ...]
) -> bool:
    """Whether either of two tokens is taken behind a text where its own logit is raised by the
    least amount, and the other's lowered.

    They may be as good; or one is as good as the last that is left to be drawn (top-p, top-k,
    min-p), and is drawn where it is left.

    Args:
        two: tokens that were taken.
        key: of the noise that they are drawn with; see `gumbel_noise`.
    """
    from dsv3_plugin.inference.logits import main_logits
    from dsv3_plugin.inference.sampling import gumbel_noise, shaped

    logits = main_logits(model, torch.tensor([text]))[0, -1].float()
    noise = 0.0 if sampling.greedy else gumbel_noise([key], len(logits))[0]
    for taken, other in (two, two[::-1]):
        raised = logits.clone()
        raised[taken] += NEAR
        raised[other] -= NEAR
        if (shaped(raised, sampling, text) + noise).argmax().item() != taken:
            return False
    return True


def first_other_experts(one: np.ndarray, two: np.ndarray) -> tuple[int, int] | None:
    """The first token, and its first layer, that went to other experts; None where all are the
    same.

    Args:
        one, two: [tokens, MoE layers, top-k].
    """
    same = min(len(one), len(two))
    differ = (np.sort(one[:same], -1) != np.sort(two[:same], -1)).any(-1)
    places = np.argwhere(differ)
    return tuple(places[0].tolist()) if len(places) else None


def as_good(model: Any, text: Sequence[int], layer: int, both: Sequence[np.ndarray]) -> bool:
    """Whether a router takes either experts for the last token of a text where the scores of those
    are raised by the least amount, and those of the others lowered.

    Args:
        layer: which of those that route.
        both: ways to choose.
    """
    router, hidden = _routed(model, text)[layer]
    scores = router._scores(router.gating(hidden[-1]))
    for experts in both:
        raised = scores - NEAR
        raised[0, torch.as_tensor(experts, dtype=torch.long)] += 2 * NEAR
        if {*router._choose(raised)[0].tolist()} != {*experts.tolist()}:
            return False
    return True


def has_tied_experts(model: Any, text: Sequence[int]) -> bool:
    """Whether a router takes other experts for one of a text's tokens where the scores of those it
    takes are lowered by the least amount, and those of all others raised."""
    for router, hidden in _routed(model, text):
        scores = router._scores(router.gating(hidden)).flatten(0, -2)
        taken = router._choose(scores)
        raised = (scores + NEAR).scatter_add(1, taken, scores.new_full(taken.shape, -2 * NEAR))
        if (router._choose(raised).sort(-1).values != taken.sort(-1).values).any():
            return True
    return False


def _routed(model: Any, text: Sequence[int]) -> list[tuple[Any, torch.Tensor]]:
    """The routers of a model, and what each is given for the tokens of a text."""
    from dsv3_plugin.inference.logits import main_logits
    from dsv3_plugin.model.router import DeepSeekRouter

    routers = [module for module in model.decoder.modules() if isinstance(module, DeepSeekRouter)]
    seen: list[torch.Tensor] = []
    handles = [
        router.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
        for router in routers
    ]
    try:
        main_logits(model, torch.tensor([text]))
    finally:
        for handle in handles:
            handle.remove()
    return [*zip(routers, seen, strict=True)]
