"""Which answer each token belongs to, and sums over answers.

Answers are packed: everything is `[t]`, the tokens of a micro-batch that were sampled, one answer
after the other, without prompts and padding. So what is said of an answer, its mean ratio for
example, is the same whatever it is packed with.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Answers:
    """The answers of a micro-batch.

    Attributes:
        of_token: int64 `[t]`, the answer of each token, from 0.
        lengths: int64 `[answers]`, tokens of each in all; an answer may have none.
    """

    of_token: Tensor
    lengths: Tensor

    @classmethod
    def of_lengths(cls, lengths: Tensor) -> "Answers":
        """Answers of so many tokens, one after the other."""
        numbers = torch.arange(len(lengths), device=lengths.device)
        return cls(numbers.repeat_interleave(lengths), lengths)

    def sums(self, values: Tensor) -> Tensor:
        """`[t]` → `[answers]`, added up."""
        return values.new_zeros(len(self.lengths)).index_add(0, self.of_token, values)

    def means(self, values: Tensor) -> Tensor:
        """`[t]` → `[answers]`; of an answer without tokens 0."""
        return self.sums(values) / self.lengths.clamp(min=1)

    def to_tokens(self, of_answers: Tensor) -> Tensor:
        """`[answers]` → `[t]`, each answer's at its tokens."""
        return of_answers[self.of_token]
