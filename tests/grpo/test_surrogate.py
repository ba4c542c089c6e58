"""Clips, by hand."""

import math

import pytest
import torch

from dsv3_plugin.grpo.surrogate import Clip, surrogate


@pytest.mark.parametrize(
    ("ratio", "advantage", "dual", "loss", "clipped", "clipped_dual"),
    [
        (1.0, 2.0, None, -2.0, False, False),
        (1.5, 2.0, None, -2.56, True, False),  # 1.28 · 2 is all that counts
        (0.5, 2.0, None, -1.0, False, False),
        (0.5, -2.0, None, 1.6, True, False),
        (1.5, -2.0, None, 3.0, False, False),
        (20.0, -2.0, None, 40.0, False, False),
        (20.0, -2.0, 10.0, 20.0, False, True),
        (20.0, 2.0, 10.0, -2.56, True, False),
    ],
)
def test_a_token_counts_as_much_as_its_clip_lets_it(
    ratio: float,
    advantage: float,
    dual: float | None,
    loss: float,
    clipped: bool,
    clipped_dual: bool,
) -> None:
    logs = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    found = surrogate(logs, torch.tensor([advantage]).double(), Clip(0.2, 0.28, dual))
    assert found.losses.item() == pytest.approx(loss)
    assert (found.clipped.item(), found.clipped_dual.item()) == (clipped, clipped_dual)
    found.losses.sum().backward()
    assert (logs.grad.item() == 0) == (clipped or clipped_dual)
