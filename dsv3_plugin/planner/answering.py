"""What a round of answers asks of a run: as much of reinforcement learning as costs anything."""

from dataclasses import dataclass
from typing import Self, TypeGuard

from dsv3_plugin.recipe.rl import Rl
from dsv3_plugin.recipe.schema import Recipe

PAGE = 64
"""Tokens of a page of the engine's cache (`inference/pages.py`)."""
READ_AT_ONCE = 2**16
"""Positions that the engine reads out of pages at once, or one text's (`inference/batch.py`)."""


def answers_here(recipe: Recipe) -> TypeGuard[Rl]:
    """Whether the ranks of a run answer themselves, and not a server elsewhere or nobody."""
    return isinstance(recipe, Rl) and recipe.rollouts.kind == "embedded"


@dataclass(frozen=True)
class Answering:
    """A round of answers.

    Attributes:
        prompts: of a round, over all ranks.
        n: answers to each.
        prompt: tokens of the longest prompt.
        tokens: of the longest answer.
        made: of it in a round, at the most: all, or as many as it is gone on by (`partial`).
        in_step: tokens that an engine computes at once.
        drafts: tokens guessed ahead.
        cache_bytes: of cached latents on a rank; None: what the longest answers take at once.
        steps: of the optimizer, that a round is trained on.
        epochs: how often each answer is.
        passes: forward passes over all answers before those steps.
        reference: whether there is one, which every rank keeps on its host.
        replay: whether the cache remembers where tokens went.
    """

    prompts: int
    n: int
    prompt: int
    tokens: int
    made: int
    in_step: int
    drafts: int
    cache_bytes: int | None
    steps: int
    epochs: int
    passes: int
    reference: bool
    replay: bool

    @classmethod
    def of(cls, recipe: Rl) -> Self:
        """As a recipe has it."""
        rollouts, grpo = recipe.rollouts, recipe.grpo
        old = recipe.updates > 1 and grpo.old == "trainer"
        return cls(
            prompts=rollouts.prompts,
            n=rollouts.n,
            prompt=rollouts.max_prompt_tokens,
            tokens=rollouts.max_tokens,
            made=min(rollouts.partial or rollouts.max_tokens, rollouts.max_tokens),
            in_step=rollouts.tokens_in_step,
            drafts=rollouts.drafts,
            cache_bytes=None if rollouts.cache_gb is None else int(rollouts.cache_gb * 1e9),
            steps=recipe.updates,
            epochs=grpo.epochs,
            passes=old + (grpo.kl_weight > 0),
            reference=grpo.kl_weight > 0,
            replay=grpo.routing_replay,
        )

    @property
    def pages(self) -> int:
        """Pages that the longest text takes, with room for guesses."""
        return -(-(self.prompt + self.tokens + 2 * self.drafts) // PAGE)

    @property
    def read_in(self) -> int:
        """Tokens of the longest text that is read as a prompt: where answers are gone on with, the
        cache was given back in between."""
        return self.prompt + (self.tokens if self.made < self.tokens else 0)

    @property
    def read_at_once(self) -> int:
        """Texts whose latents lie side by side at once, at their longest."""
        return max(1, READ_AT_ONCE // (self.pages * PAGE))

    def at_once(self, data: int) -> int:
        """Answers that an engine is asked for, of so many that are asked."""
        return max(1, self.prompts // data) * self.n
