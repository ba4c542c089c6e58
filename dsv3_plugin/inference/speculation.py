"""Tokens guessed ahead by the layers of multi-token prediction, to be judged by the model at once.

Layer d (from 1) at position i makes of the state of layer d − 1 there (of the main model for d = 1)
and of token i + d what it expects of token i + d + 1 (DeepSeek-V3, arXiv 2412.19437, section 2.2).
So after the model has computed positions up to t and token t + 1 is drawn, layer 1 at t guesses
token t + 2, layer 2 at t, given that guess, token t + 3, and so on. Beyond the last layer it is
applied again, a position further each time.

Like any layer they attend to their own past, so they run over every position that the model
computes. Layer d lags behind by d − 1 positions, whose tokens were not known: it computes those
again, with the right tokens, and goes on from a state of the step before that it kept.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv3_plugin.inference.attention import Rotation
from dsv3_plugin.inference.batch import Batch, Span, batch_of
from dsv3_plugin.inference.cache import LatentCache
from dsv3_plugin.inference.forward import ModelParts, layer_output
from dsv3_plugin.inference.scheduler import Sequence

Choose = Callable[[list[int], Tensor], list[int]]
"""From the numbers of trails and hidden states [trails, h] to the tokens that are guessed."""


@dataclass
class Trail:
    """A sequence behind a step of the model.

    Attributes:
        sequence: as the step left it.
        states: [positions, h], what the model made of the step's positions that are right, the
            last of which is the sequence's last computed one.
        wanted: guesses; none while a prompt is computed in parts.
        kept: states of the step before, by the layer that goes on from them; those of this step
            afterwards.
        guesses: token ids.
    """

    sequence: Sequence
    states: Tensor
    wanted: int
    kept: dict[int, Tensor]
    guesses: list[int] = field(default_factory=list)
    _begin: int = field(init=False)
    _before: dict[int, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self._before = dict(self.kept)
        self.kept.clear()
        self._begin = self.sequence.computed - len(self.states)

    def inputs(self, layer: int) -> Span:
        """The positions that a layer has to compute, with the tokens it looks ahead to.

        `states` are those of the layer before at these positions, afterwards.
        """
        if layer in self._before:
            self.states = torch.cat([self._before[layer], self.states])
            self._begin -= 1
        known = [*self.sequence.tokens, *self.guesses]
        end = min(self.sequence.computed, len(known) - layer)
        self.states = self.states[: max(end - self._begin, 0)]
        return Span(known[self._begin + layer : end + layer], self._begin, self.sequence.pages)

    def again(self, further: int) -> Span:
        """The position at which the last layer is applied again."""
        place = self.sequence.computed - 1 + further
        self.states = self.states[-1:]
        return Span(self.guesses[-1:], place, self.sequence.pages)

    def keep(self, layer: int) -> None:
        """Keep of a layer's states the one that the next layer goes on from in the next step."""
        place = self.sequence.computed - layer - self._begin
        if 0 <= place < len(self.states):
            self.kept[layer + 1] = self.states[place : place + 1]


class Predictor:
    """A model's layers of multi-token prediction, guessing.

    Args:
        parts: of the model; this rank has its end.
        drafts: tokens guessed in a step at most.
        absorbed: see `batch_of`.
    """

    def __init__(
        self, parts: ModelParts, drafts: int, absorbed: Callable[[int, int], bool]
    ) -> None:
        self.depth = parts.predictors
        self._parts, self._model, self._drafts = parts, parts.head, drafts
        self._absorbed = absorbed

    def guess(
        self, trails: list[Trail], cache: LatentCache, rotation: Rotation, choose: Choose
    ) -> None:
        """Let the layers follow the model, and guess; the guesses are in the trails.

        Where ranks divide experts, each goes through as many layers, with trails or without.
        """
        for step in range(1, max(self._drafts, self.depth) + 1):
            layer = min(step, self.depth)
            if step > self.depth:
                asked = [n for n, trail in enumerate(trails) if trail.wanted >= step]
                spans = [trails[n].again(step - layer) for n in asked]
            else:
                spans = [trail.inputs(layer) for trail in trails]
                asked = [n for n, span in enumerate(spans) if span.tokens]
                spans = [spans[n] for n in asked]
            if not spans and self._parts.expert_ranks is None:
                continue
            batch = batch_of(spans, self._absorbed, self._parts.device)
            config = self._parts.config
            before = cache.rows.new_empty(len(batch.ids), config.hidden_size)
            for number, of_span in zip(asked, batch.rows_of, strict=True):
                before[of_span] = trails[number].states
            states = self._apply(layer, before, batch, rotation, cache)
            for number, of_span in zip(asked, batch.rows_of, strict=True):
                trails[number].states = states[of_span]
                if step < self.depth:
                    trails[number].keep(layer)
            guessing = [n for n in asked if trails[n].wanted >= step]
            if guessing:
                last = torch.cat([trails[n].states[-1:] for n in guessing])
                for number, token in zip(guessing, choose(guessing, last), strict=True):
                    trails[number].guesses.append(token)

    def _apply(
        self, number: int, states: Tensor, batch: Batch, rotation: Rotation, cache: LatentCache
    ) -> Tensor:
        """A layer's states [t, h] after its norm."""
        self._parts.expect(batch)
        model, layer = self._model, self._model.mtp.layers[number - 1]
        ahead = F.embedding(batch.ids, model.embedding.word_embeddings.weight)
        both = torch.cat([layer.enorm(ahead), layer.hnorm(states)], dim=-1)
        hidden = F.linear(both, layer.eh_proj.weight)
        turned = rotation.of(batch.positions)
        place = len(self._parts.layers) + number - 1
        ranks = self._parts.expert_ranks
        hidden, _ = layer_output(layer.mtp_model_layer, hidden, batch, turned, cache, place, ranks)
        return layer.final_layernorm(hidden)
