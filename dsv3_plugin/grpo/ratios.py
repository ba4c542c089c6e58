"""How much likelier the trained model makes a token, or an answer, than the one that sampled it."""

from typing import Literal

from torch import Tensor

from dsv3_plugin.grpo.answers import Answers

LARGEST_LOG_RATIO = 20.0
"""Beyond it a ratio is not told apart from infinity, nor is its gradient: it has none."""

Importance = Literal["token", "sequence"]
"""token: of each token (PPO, GRPO); sequence: the geometric mean over an answer (GSPO)."""


def log_ratios(new: Tensor, old: Tensor, answers: Answers, importance: Importance) -> Tensor:
    """Log of the importance ratio at each token, `[t]`, with the gradient of `new`.

    Of a sequence it is GSPO-token's (arXiv 2507.18071, equation 14): the value is the mean over the
    answer, and the gradient flows through each token's own.

    Args:
        new: `[t]`, log-probabilities of the sampled tokens under the model in training.
        old: `[t]`, under the one that the step began with.
        answers: of the tokens.
        importance: see `Importance`.
    """
    ratios = new - old
    if importance == "sequence":
        means = answers.to_tokens(answers.means(ratios.detach()))
        ratios = new - new.detach() + means
    return ratios.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
