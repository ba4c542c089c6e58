"""Estimates of the divergence from a reference, at each sampled token.

k1 and k3 are Schulman's (joschu.net/blog/kl-approx.html): k1 is unbiased and of any sign, k3 is
unbiased and never negative. Their expectations are the divergence where tokens are sampled from the
model itself; after an update they are not, which the importance ratio mends (`unbiased`, as in
DeepSeek-V3.2, arXiv 2512.02556, section 3.1).
"""

from typing import Literal

from torch import Tensor

from dsv3_plugin.grpo.ratios import LARGEST_LOG_RATIO

Estimate = Literal["k1", "k3", "unbiased"]

LARGEST = 10.0
"""What k3 is bounded by: at a log-ratio of 100 it would be infinite."""


def divergence(
    new: Tensor, reference: Tensor, estimate: Estimate, log_ratios: Tensor | None = None
) -> Tensor:
    """KL(model ‖ reference) at each token, `[t]`.

    Args:
        new: `[t]`, log-probabilities under the model, with gradient.
        reference: `[t]`, under the reference.
        estimate: see above.
        log_ratios: `[t]`, each token's own, by which the model differs from the one that sampled;
            for `unbiased`.
    """
    if estimate == "k1":
        return new - reference
    difference = (reference - new).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    k3 = (difference.expm1() - difference).clamp(max=LARGEST)
    if estimate == "k3":
        return k3
    assert log_ratios is not None, "an unbiased estimate needs the importance ratios"
    return k3 * log_ratios.exp()
