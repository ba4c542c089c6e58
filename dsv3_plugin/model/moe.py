"""The MoE layer of the local backend: upstream's, with a short way to experts on the same rank."""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.moe.token_dispatcher import (
    MoEAlltoAllTokenDispatcher,
    MoETokenDispatcher,
)
from torch import Tensor

from dsv3_plugin.dispatch.moe_layer import MoELayer


class LocalMoELayer(MoELayer):
    """The MoE layer; where all experts are on this rank, tokens are not sent but sorted."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        dispatcher = self.token_dispatcher
        alone = dispatcher.ep_size == 1 and dispatcher.tp_size == 1
        upstreams = isinstance(dispatcher, MoEAlltoAllTokenDispatcher)
        if alone and upstreams and not self.shared_expert_overlap:
            self.token_dispatcher = OneRankDispatcher(self.config, kwargs["pg_collection"])


class OneRankDispatcher(MoETokenDispatcher):
    """Sorts tokens by expert and adds their outputs up again; nothing leaves the rank.

    What upstream's all-to-all dispatcher does with one rank, without its copies.
    """

    def dispatch_preprocess(
        self, tokens: Tensor, routing_map: Tensor, probs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rows sorted by expert, then by token.

        Args:
            tokens: [s, b, h].
            routing_map: [s · b, experts], True where a token goes to an expert; every token goes to
                the same number of experts.
            probs: [s · b, experts], the router's weights.

        Returns:
            rows [s · b · top-k, h] and their weights [s · b · top-k].
        """
        self._shape = tokens.shape
        self._counts = routing_map.sum(0)
        starts = self._counts.cumsum(0) - self._counts
        # Row of each (token, expert): where the expert's rows start, and how many came before.
        place = (routing_map.cumsum(0) + (starts - 1)).masked_select(routing_map)
        self._place = place.view(routing_map.shape[0], -1)
        expert, self._token = routing_map.t().nonzero(as_tuple=True)
        flat = self._token * routing_map.shape[1] + expert
        rows = _Spread.apply(tokens.reshape(-1, self._shape[-1]), self._token, self._place)
        return rows, probs.flatten().index_select(0, flat)

    def token_dispatch(self, hidden_states: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
        """Nothing to send."""
        return hidden_states, probs

    def dispatch_postprocess(
        self, hidden_states: Tensor, probs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The rows, how many each expert has, and their weights."""
        return hidden_states, self._counts, probs

    def combine_preprocess(self, hidden_states: Tensor) -> Tensor:
        """Nothing to sort back."""
        return hidden_states

    def token_combine(self, hidden_states: Tensor) -> Tensor:
        """Nothing to send."""
        return hidden_states

    def combine_postprocess(self, hidden_states: Tensor) -> Tensor:
        """The sum of each token's rows, [s, b, h]."""
        return _AddUp.apply(hidden_states, self._token, self._place).view(self._shape)


class _Spread(torch.autograd.Function):
    """rows[r] = x[token[r]]; its gradient adds each token's rows up."""

    @staticmethod
    def forward(ctx, x: Tensor, token: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        return x.index_select(0, token)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return _sum_of_rows(grad, *ctx.saved_tensors), None, None


class _AddUp(torch.autograd.Function):
    """x[t] = Σ rows[place[t]]; its gradient is each token's, once per row."""

    @staticmethod
    def forward(ctx, rows: Tensor, token: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(token)
        return _sum_of_rows(rows, place)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (token,) = ctx.saved_tensors
        return grad.contiguous().index_select(0, token), None, None


def _sum_of_rows(rows: Tensor, place: Tensor) -> Tensor:
    """[tokens, h]: for each token the sum of the rows at its places [tokens, top-k]."""
    return F.embedding_bag(place, rows, mode="sum")
