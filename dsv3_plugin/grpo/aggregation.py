"""What each token of a step weighs, so that losses are sums.

Weights come from the lengths of all answers of an optimizer step, whatever micro-batch or rank they
are on: the loss of a step is the same however its answers are packed, and however many ranks
compute it.
"""

from typing import Literal

from torch import Tensor

Aggregation = Literal["token_mean", "sequence_mean", "dr_grpo"]
"""token_mean: the mean over all tokens (DAPO, arXiv 2503.14476, equation 12); sequence_mean: the
mean over answers of their means (GRPO, arXiv 2402.03300, equation 3); dr_grpo: the sum over tokens,
over the number of answers and the longest that one may be (arXiv 2503.20783, section 3.2)."""


def token_weights(lengths: Tensor, aggregation: Aggregation, longest: int) -> Tensor:
    """What a token of each answer weighs, `[answers]`; an answer without tokens has no weight.

    Args:
        lengths: int64 `[answers]`, of all answers of the step.
        aggregation: see `Aggregation`.
        longest: tokens that an answer may have.
    """
    answers = (lengths > 0).sum().clamp(min=1)
    match aggregation:
        case "token_mean":
            weights = (1 / lengths.sum().clamp(min=1)).expand(len(lengths))
        case "sequence_mean":
            weights = 1 / (answers * lengths.clamp(min=1))
        case "dr_grpo":
            weights = (1 / (answers * longest)).expand(len(lengths))
    return weights.masked_fill(lengths == 0, 0)
