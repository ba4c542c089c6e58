"""What a step of reinforcement learning computes with, and what it finds."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from dsv3_plugin.grpo.correction import Correction
from dsv3_plugin.grpo.loss import Loss, Switches
from dsv3_plugin.grpo.mismatch import Mismatch, mismatch, together
from dsv3_plugin.grpo.surrogate import Clip
from dsv3_plugin.recipe.rl import Grpo, Rl
from dsv3_plugin.rollouts.rows import Text


@dataclass
class Learning:
    """Of the step that is under way; one belongs to one run.

    Attributes:
        switches: what is minimised.
        temperature: that answers are drawn at.
        advantages, weights: `[answers]` of the step, on the host.
        tokens: of these answers, on all ranks.
    """

    switches: Switches
    temperature: float = 1.0
    advantages: Tensor = field(default_factory=lambda: torch.zeros(0))
    weights: Tensor = field(default_factory=lambda: torch.zeros(0))
    tokens: int = 0
    _seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _found: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, recipe: Rl) -> "Learning":
        """As a recipe has it."""
        return cls(switches_of(recipe.grpo, recipe.trains_on_older), recipe.rollouts.temperature)

    def begin(self, advantages: Tensor, weights: Tensor, tokens: int) -> None:
        """A step begins."""
        self.advantages, self.weights, self.tokens = advantages, weights, tokens
        self._seen.clear()
        self._found.clear()

    def look_at(self, new: Tensor, sampled: Tensor, loss: Loss) -> None:
        """Remember what a micro-batch has found, where it lies: the host waits for none of it.

        Args:
            new, sampled: `[t]`, log-probabilities by the trainer and by the engine.
            loss: of it.
        """
        self._seen.append((new, sampled))
        tokens = torch.full_like(loss.kl, len(new))
        counted = (
            -new.sum(), tokens, loss.clipped, loss.clipped_dual, loss.entropy, loss.kl,
            loss.truncated, torch.full_like(loss.kl, loss.corrected),
        )  # fmt: skip
        self._found.append(torch.stack([number.detach().double() for number in counted]))

    def mismatch(self) -> Mismatch:
        """Between trainer and engine, of all tokens of the step; every rank gets it."""
        own, tokens = self._own_mismatch()
        rows = _of_all_ranks(torch.tensor([*astuple(own), tokens], dtype=torch.float64)).tolist()
        return together([(Mismatch(*row[:-1]), int(row[-1])) for row in rows])

    def mismatch_of(
        self, trainer: Sequence[Sequence[float]], texts: Sequence[Text]
    ) -> tuple[Mismatch, int]:
        """Between trainer and engine, of answers that are not in this step, and their tokens.

        Args:
            trainer: log-probabilities of each answer's tokens by the trainer.
            texts: the answers.
        """
        clip = self.switches.clip
        found = [
            (
                mismatch(torch.tensor(own), torch.tensor(text.log_probs), clip.low, clip.high),
                len(own),
            )
            for own, text in zip(trainer, texts, strict=True)
        ]
        return together(found), sum(tokens for _, tokens in found)

    def _own_mismatch(self) -> tuple[Mismatch, int]:
        """Of this rank's tokens, and how many they are."""
        new, sampled = (
            torch.cat([seen[side] for seen in self._seen] or [torch.zeros(0)]) for side in (0, 1)
        )
        return mismatch(new, sampled, self.switches.clip.low, self.switches.clip.high), len(new)

    def _sums(self) -> Tensor:
        """Of what this rank's micro-batches found, float64 `[8]` on the host."""
        found = [numbers.cpu() for numbers in self._found]
        return torch.stack([torch.zeros(8, dtype=torch.float64), *found]).sum(0)

    def numbers(self) -> dict[str, float]:
        """What the step has found, over all ranks, as the metrics call it."""
        surprise, tokens, clipped, dual, entropy, kl, truncated, corrected = (
            _of_all_ranks(self._sums()).sum(0).tolist()
        )
        numbers = _of_advantages(self.advantages) | {
            # Of tokens drawn from the model itself it is an estimate without bias.
            "rl/entropy": surprise / max(tokens, 1),
            "rl/clip_fraction": clipped / max(tokens, 1),
            "rl/clip_fraction_dual": dual / max(tokens, 1),
        }
        if self.switches.correction is not None:
            numbers["rl/correction_truncated"] = truncated / max(corrected, 1)
        if self.switches.entropy_weight:
            numbers["rl/entropy"] = entropy
        if self.switches.kl_weight:
            numbers["rl/kl"] = kl
        return numbers


def _of_advantages(advantages: Tensor) -> dict[str, float]:
    """Of the answers of a step; nothing of none."""
    if not len(advantages):
        return {}
    found = advantages.double()
    return {
        "rl/advantage_mean": found.mean().item(),
        "rl/advantage_std": found.std(correction=0).item(),
        "rl/advantage_min": found.min().item(),
        "rl/advantage_max": found.max().item(),
    }


def switches_of(grpo: Grpo, older: bool = False) -> Switches:
    """The loss that a recipe asks for.

    Args:
        grpo: of it.
        older: whether answers are of older weights, and so corrected in any case.
    """
    # Ratios to what sampled have nothing to correct.
    corrects = (older or grpo.on_mismatch == "correct") and grpo.old == "trainer"
    correction = Correction(grpo.correction, grpo.correction_high, grpo.correction_low)
    return Switches(
        clip=Clip(grpo.clip_low, grpo.clip_high, grpo.clip_dual),
        importance=grpo.importance,
        kl=grpo.kl,
        kl_weight=grpo.kl_weight,
        entropy_weight=grpo.entropy_weight,
        correction=correction if corrects else None,
    )


def _of_all_ranks(numbers: Tensor) -> Tensor:
    """What each rank knows, `[ranks, numbers]`: nothing where another stage has the loss."""
    device = torch.cuda.current_device()
    ranks = dist.get_world_size()
    every = torch.empty(ranks * len(numbers), dtype=numbers.dtype, device=device)
    dist.all_gather_into_tensor(every, numbers.to(device))
    return every.view(ranks, -1).cpu()
