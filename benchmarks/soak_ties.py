"""Places where another token, or another expert, is as good, of answers `soak.py` compares."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

NEAR = 1e-5
"""Between the two best of a place where another token is no fault, and two scores of experts."""


def gap_of_tokens(
    model: Any, text: Sequence[int], two: set[int], sampling: Any, key: tuple[int, ...]
) -> float:
    """By how much the best token behind a text is better than the next; infinite where those that
    were taken are others.

    Args:
        two: tokens that were taken.
        key: of the noise that it is drawn with; see `gumbel_noise`.
    """
    from dsv3_plugin.inference.logits import main_logits
    from dsv3_plugin.inference.sampling import gumbel_noise, shaped

    row = shaped(main_logits(model, torch.tensor([text]))[0, -1].float(), sampling, text)
    if not sampling.greedy:
        row = row + gumbel_noise([key], len(row))[0]
    values, best = row.topk(2)
    return (values[0] - values[1]).item() if two == {*best.tolist()} else math.inf


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
    from dsv3_plugin.inference.logits import main_logits
    from dsv3_plugin.model.router import DeepSeekRouter

    router = [m for m in model.decoder.modules() if isinstance(m, DeepSeekRouter)][layer]
    seen: list[torch.Tensor] = []
    handle = router.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    try:
        main_logits(model, torch.tensor([text]))
    finally:
        handle.remove()
    scores = router._scores(router.gating(seen[-1][-1]))
    for experts in both:
        raised = scores - NEAR
        raised[0, torch.as_tensor(experts, dtype=torch.long)] += 2 * NEAR
        if {*router._choose(raised)[0].tolist()} != {*experts.tolist()}:
            return False
    return True
