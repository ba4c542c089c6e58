"""The loss of a micro-batch: what GRPO's switches make of log-probabilities and advantages."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dsv3_plugin.grpo.answers import Answers
from dsv3_plugin.grpo.correction import Correction, correction_weights, truncated
from dsv3_plugin.grpo.kl import Estimate, divergence
from dsv3_plugin.grpo.ratios import Importance, log_ratios
from dsv3_plugin.grpo.surrogate import Clip, surrogate


@dataclass(frozen=True)
class Switches:
    """What is minimised.

    Attributes:
        clip: see `Clip`.
        importance: see `Importance`.
        kl, kl_weight: the estimate of the divergence from the reference, and its weight.
        entropy_weight: of the bonus on entropy.
        correction: of what the engine sampled; None: taken as the trainer's own.
    """

    clip: Clip
    importance: Importance = "token"
    kl: Estimate = "k3"
    kl_weight: float = 0.0
    entropy_weight: float = 0.0
    correction: Correction | None = None


@dataclass(frozen=True)
class LogProbabilities:
    """Of the sampled tokens, `[t]` each.

    Attributes:
        new: under the model in training, with gradient.
        old: under the one that the step began with.
        reference: under the reference; None where it has no weight.
        sampled: as the engine said; None where nothing is corrected.
    """

    new: Tensor
    old: Tensor
    reference: Tensor | None = None
    sampled: Tensor | None = None


@dataclass(frozen=True)
class Loss:
    """Of a micro-batch.

    Attributes:
        value: the sum over its tokens, as each weighs; summed over micro-batches and ranks it is
            the step's.
        kl, entropy: sums of their own, with the same weights, before their coefficients.
        clipped, clipped_dual: how many tokens a bound of the clip took the gradient from.
        truncated: how many tokens, or answers if those are corrected, a bound of the correction
            holds for.
        corrected: of how many.
    """

    value: Tensor
    kl: Tensor
    entropy: Tensor
    clipped: Tensor
    clipped_dual: Tensor
    truncated: Tensor
    corrected: int


def policy_loss(
    logs: LogProbabilities,
    advantages: Tensor,
    answers: Answers,
    weights: Tensor,
    switches: Switches,
    entropy: Tensor | None = None,
) -> Loss:
    """GRPO's loss (arXiv 2402.03300, equation 3), with the field's switches.

    Args:
        logs: log-probabilities of the tokens.
        advantages: `[answers]`.
        answers: of the tokens.
        weights: `[answers]`, what a token of each weighs in the step (`token_weights`).
        switches: what is minimised.
        entropy: `[t]`, of the model's distribution at each token, nats; where it has a weight.
    """
    ratios = log_ratios(logs.new, logs.old, answers, switches.importance)
    of_tokens = surrogate(ratios, answers.to_tokens(advantages), switches.clip)
    losses = of_tokens.losses
    beyond = torch.zeros(0, dtype=torch.bool, device=losses.device)
    if switches.correction is not None:
        assert logs.sampled is not None, "nothing to correct by"
        losses = losses * correction_weights(logs.old, logs.sampled, answers, switches.correction)
        beyond = truncated(logs.old, logs.sampled, answers, switches.correction)
    weights = answers.to_tokens(weights)
    nothing = torch.zeros((), dtype=losses.dtype, device=losses.device)
    value, kl, chance = (losses * weights).sum(), nothing, nothing
    if logs.reference is not None:
        own = log_ratios(logs.new, logs.old, answers, "token")
        estimates = divergence(logs.new, logs.reference, switches.kl, own)
        kl = (estimates * weights).sum()
        value = value + switches.kl_weight * kl
    if entropy is not None:
        chance = (entropy * weights).sum()
        value = value - switches.entropy_weight * chance
    return Loss(
        value,
        kl.detach(),
        chance.detach(),
        of_tokens.clipped.sum(),
        of_tokens.clipped_dual.sum(),
        beyond.sum(),
        len(beyond),
    )
