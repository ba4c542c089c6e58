"""An answer while it is made."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor

from dsv3_plugin.inference.drawing import Place, drawn_reports, given_reports
from dsv3_plugin.inference.requests import (
    Completion,
    FinishReason,
    SamplingParameters,
    TokenReport,
)
from dsv3_plugin.inference.scheduler import Part
from dsv3_plugin.inference.scheduler import Sequence as Text
from dsv3_plugin.inference.text import GrowingText, StopStrings


@dataclass(eq=False)
class Answer:
    """An answer that is being made.

    Attributes:
        request, number: which.
        prompt_number: of the request.
        sampling: of the request.
        sequence: prompt and answer, as the scheduler has them.
        deadline: when it ends as it is, on the engine's clock.
        reports, prompt_reports: of its tokens so far.
        guesses: tokens that may follow, to be judged in the next step.
        kept: states that guessing goes on from (`speculation.Trail`).
        text: of its tokens, where strings may end it.
    """

    request: int
    number: int
    prompt_number: int
    sampling: SamplingParameters
    sequence: Text
    deadline: float | None
    reports: list[TokenReport] = field(default_factory=list)
    prompt_reports: list[TokenReport] = field(default_factory=list)
    guesses: list[int] = field(default_factory=list)
    kept: dict[int, Tensor] = field(default_factory=dict)
    text: GrowingText | None = None
    stops: StopStrings = field(init=False)

    def __post_init__(self) -> None:
        self.stops = StopStrings(self.sampling.stop)

    @property
    def begun(self) -> bool:
        """Whether it has a token, or latents."""
        return bool(self.reports or self.sequence.pages)

    def begin_again(self) -> None:
        """Drop what was computed; what was drawn stays."""
        self.prompt_reports.clear()
        self.guesses.clear()
        self.kept.clear()

    def place(self, ahead: Sequence[int]) -> Place:
        """Where its next token is drawn, were these to follow what it has."""
        index = len(self.reports) + len(ahead)
        which = self.prompt_number, self.number, index
        return Place(self.sampling, which, self.sequence.tokens, ahead)

    def take(self, drawn: Sequence[TokenReport]) -> tuple[list[TokenReport], FinishReason | None]:
        """Add drawn tokens as far as the answer goes on.

        Returns:
            Those that were added, and why the answer ends, if it does.
        """
        self.guesses = []
        for count, report in enumerate(drawn, start=1):
            self.reports.append(report)
            self.sequence.tokens.append(report.token)
            reason = self._ends()
            if reason is not None:
                return list(drawn[:count]), reason
        return list(drawn), None

    def _ends(self) -> FinishReason | None:
        last = self.reports[-1].token
        if last in self.sampling.stop_tokens:
            return "stop"
        if self.text is not None:
            self.text.add([last])
            if self.stops.look(self.text.settled):
                return "stop"
        return "length" if len(self.sequence.tokens) == self.sequence.most else None

    def completion(self, reason: FinishReason, experts: Any) -> Completion:
        """What it is in the end."""
        asked = self.sampling.prompt_log_probs
        return Completion(
            self.request,
            self.number,
            self.sequence.prompt,
            tuple(self.reports),
            tuple(self.prompt_reports) if asked else None,
            reason,
            experts,
        )


def reports_of_step(
    head: GPTModel,
    parts: Sequence[Part],
    answers: Sequence[Answer],
    rows_of: Sequence[slice],
    hidden: Tensor,
    version: int,
) -> tuple[list[list[TokenReport]], list[TokenReport]]:
    """What comes of the tokens that a step computed.

    Args:
        head: the end of the model.
        parts: of the step, not yet counted as computed.
        answers: that they are of.
        rows_of: their rows, guesses included.
        hidden: what the model made of all rows, [t, h].
        version: of the weights.

    Returns:
        For each part what is reported of the prompt's tokens that its own expected, and the tokens
        that may follow those that reach their end: one, and one behind each guess.
    """
    rows: list[int] = []
    places: list[Place] = []
    prompts: list[list[TokenReport]] = []
    for part, answer, of_span in zip(parts, answers, rows_of, strict=True):
        begin, sampling = part.sequence.computed, answer.sampling
        wanted = part.sequence.prompt[begin + 1 : begin + part.count + 1]
        asked = sampling.prompt_log_probs
        of_prompt = given_reports(head, wanted, sampling, hidden[of_span], version) if asked else []
        prompts.append(of_prompt)
        if part.reaches_end:
            rows += range(of_span.start + part.count - 1, of_span.stop)
            counts = range(len(answer.guesses) + 1)
            places += [answer.place(answer.guesses[:count]) for count in counts]
    last = torch.tensor(rows, dtype=torch.int64, device=hidden.device)
    return prompts, drawn_reports(head, places, hidden[last], version)
