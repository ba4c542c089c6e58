"""How far an engine's log-probabilities in BF16 are from a forward pass of the trainer's model.

Two ways of rounding to 8 bits, layer by layer. A token between two experts may be sent elsewhere by
it, and has other numbers then: a pass in BF16 is as far from one in FP32 there. So tokens are told
apart by whether the experts of all layers are the same in both.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from dsv3_plugin.inference.logits import main_logits
from dsv3_plugin.inference.requests import Completion

UNTOUCHED, SAME = 0.15, 0.5
"""Bounds of a token's log-probability: with the same experts for it and all before it, and for it
alone, having attended to some that went elsewhere."""


@dataclass
class Apart:
    """Distances of log-probabilities, of each drawn token.

    Attributes:
        untouched: of tokens of texts in which none went elsewhere until then.
        same: of other tokens that went the same way.
        elsewhere: of those that did not.
    """

    untouched: list[float] = field(default_factory=list)
    same: list[float] = field(default_factory=list)
    elsewhere: list[float] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """How many."""
        return len(self.untouched) + len(self.same) + len(self.elsewhere)

    def must_be_near(self) -> None:
        """Every token within its bound, and few without."""
        assert max(self.untouched, default=0.0) <= UNTOUCHED
        assert max(self.same, default=0.0) <= SAME
        assert len(self.elsewhere) <= self.tokens / 3


def beside_forward(model: torch.nn.Module, answers: Iterable[Completion]) -> Apart:
    """Answers that know their tokens' experts, beside one pass over each.

    Args:
        model: whole, with the weights that the answers were made with.
        answers: of any engine.
    """
    apart = Apart()
    for answer in answers:
        ids = torch.tensor([*answer.prompt, *answer.tokens])
        expected, experts = _passed(model, ids[:-1])
        first = len(answer.prompt) - 1
        expected = expected.gather(1, ids[1:, None])[first:, 0]
        distances = (torch.tensor(answer.log_probs) - expected).abs().tolist()
        alike = (answer.experts.sort(-1).values == experts).flatten(1).all(1)
        so_far = alike.cumprod(0).bool()
        for distance, is_alike, all_are in zip(
            distances, alike[first:], so_far[first:], strict=True
        ):
            which = apart.untouched if all_are else apart.same if is_alike else apart.elsewhere
            which.append(distance)
    return apart


def _passed(model: torch.nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities [t, vocab], and the experts of layers that route, [t, layers, top-k]."""
    chosen: list[torch.Tensor] = []
    hooks = [
        layer.mlp.router.register_forward_hook(lambda _module, _inputs, out: chosen.append(out[1]))
        for layer in model.decoder.layers
        if hasattr(layer.mlp, "router")
    ]
    log_probs = main_logits(model, ids[None])[0].log_softmax(-1)
    for hook in hooks:
        hook.remove()
    return log_probs, torch.stack([of.nonzero()[:, 1].view(len(ids), -1) for of in chosen], dim=1)
