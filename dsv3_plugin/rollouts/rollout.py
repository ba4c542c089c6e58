"""An answer to a prompt, whatever made it."""

from dataclasses import dataclass, field
from typing import Any

from dsv3_plugin.inference.requests import Completion, FinishReason


@dataclass(frozen=True)
class Rollout:
    """What a policy did with a prompt.

    Attributes:
        prompt: token ids, at least one.
        tokens: token ids of the answer; one that ended by a stop token has that at its end.
        log_probs: natural logarithms of the probabilities of these tokens in the distributions
            that they were drawn from, behind the temperature.
        finish_reason: why it ended.
        versions: of the weights, for each token.
        experts: [positions, MoE layers, top-k], int32: the experts that the tokens of prompt and
            answer went to, the last token aside; None where that is not known.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: FinishReason
    versions: tuple[int, ...]
    experts: Any = field(default=None, compare=False)

    def __post_init__(self) -> None:
        assert len(self.tokens) == len(self.log_probs) == len(self.versions)

    @classmethod
    def of(cls, answer: Completion) -> "Rollout":
        """What an engine of ours has answered."""
        return cls(
            prompt=answer.prompt,
            tokens=tuple(answer.tokens),
            log_probs=tuple(answer.sampling_log_probs),
            finish_reason=answer.finish_reason,
            versions=tuple(answer.versions),
            experts=answer.experts,
        )
