"""An answer to a prompt, whatever made it."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dsv3_plugin.inference.requests import Completion, FinishReason

UNFINISHED = "unfinished"
"""The reason why an answer has no end yet: its round had one."""


@dataclass(frozen=True)
class Rollout:
    """What a policy did with a prompt.

    Attributes:
        prompt: token ids, at least one.
        tokens: token ids of the answer; one that ended by a stop token has that at its end.
        log_probs: natural logarithms of the probabilities of these tokens in the distributions
            that they were drawn from, behind the temperature.
        finish_reason: why it ended, or `UNFINISHED`.
        versions: of the weights, for each token: in training the steps that had been taken, else as
            whoever answers counts them.
        experts: [positions, MoE layers, top-k], int32: the experts that the tokens of prompt and
            answer went to, the last token aside; None where that is not known.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: FinishReason | Literal["unfinished"]
    versions: tuple[int, ...]
    experts: Any = field(default=None, compare=False)

    def __post_init__(self) -> None:
        assert len(self.tokens) == len(self.log_probs) == len(self.versions)

    @property
    def unfinished(self) -> bool:
        """Whether it is gone on with."""
        return self.finish_reason == UNFINISHED

    def gone_on(self, more: "Rollout") -> "Rollout":
        """With what was answered to it and its prompt."""
        return replace(
            more,
            prompt=self.prompt,
            tokens=self.tokens + more.tokens,
            log_probs=self.log_probs + more.log_probs,
            versions=self.versions + more.versions,
        )

    @classmethod
    def of(cls, answer: Completion, version: int | None = None) -> "Rollout":
        """What an engine of ours has answered.

        Args:
            answer: it.
            version: of the weights; None: as the engine counts them.
        """
        return cls(
            prompt=answer.prompt,
            tokens=tuple(answer.tokens),
            log_probs=tuple(answer.sampling_log_probs),
            finish_reason=answer.finish_reason,
            versions=tuple(answer.versions) if version is None else (version,) * len(answer.tokens),
            experts=answer.experts,
        )
