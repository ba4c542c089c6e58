"""The router: which experts a token goes to, as DeepSeek computes it.

What differs from upstream's TopKRouter, which this extends:

* A group of experts is scored by its best two experts when scores are sigmoids (DeepSeek-V3, arXiv
  2412.19437 section 2.1.2), by its best one when they are a softmax (DeepSeek-V2, arXiv 2405.04434
  section 2.2.2). Upstream adds up the best (experts per token // groups per token), which agrees
  for 8 // 4 and chooses other experts for most other splits.
* DeepSeek-V2's balance loss counts the experts that were chosen, groups and all (its published
  modeling code); V3's counts the top experts by unbiased score (equation 18), as upstream does.
* Tokens per expert are counted in int64. Upstream holds the counts in a floating buffer that a BF16
  model turns into BF16, where 257 is 256 and the sign of a bias update can flip.
* The bias stays FP32 whatever the model is cast to.
* FP32 logits are products of FP32, and not of TF32, where Transformer Engine is installed.
* Padding is left out with the fused kernel too, where upstream takes a mask of tokens for one of
  experts and stops; and balance losses of sequences with padding do not depend on how they lie in
  micro-batches or on ranks (`_padded_balance_loss`).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import reduce_from_tensor_model_parallel_region
from megatron.core.transformer.moe.moe_utils import (
    compute_routing_scores_for_aux_loss,
)
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from dsv3_plugin.distributed.packs import CHOSEN, RoutedSamples
from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe.options import routes_as


class DeepSeekRouter(TopKRouter):
    """Upstream's TopKRouter with DeepSeek's choice of experts; same parameters, same keys."""

    def __init__(
        self,
        config: TransformerConfig,
        pg_collection: ProcessGroupCollection | None = None,
        is_mtp_layer: bool = False,
    ) -> None:
        super().__init__(config=config, pg_collection=pg_collection, is_mtp_layer=is_mtp_layer)
        if config.moe_router_load_balancing_type in ("sinkhorn", "quantile_balancing"):
            raise UserError(
                f"moe_router_load_balancing_type {config.moe_router_load_balancing_type} is not "
                "a way DeepSeek models are routed: use seq_aux_loss, aux_loss or none."
            )
        if config.moe_expert_capacity_factor is not None or config.moe_enable_routing_replay:
            raise UserError(
                "DeepSeek models drop no tokens and replay no routing: leave "
                "moe_expert_capacity_factor and moe_enable_routing_replay unset."
            )
        if self.enable_expert_bias:
            counts = torch.zeros_like(self.local_tokens_per_expert, dtype=torch.int64)
            self.register_buffer("local_tokens_per_expert", counts, persistent=False)

    def gating(self, input: Tensor) -> Tensor:
        """Logits of the experts [..., experts] of hidden states [..., h].

        Upstream multiplies by Transformer Engine wherever that is installed, whose products round
        FP32 factors to the ten bits of TF32 (`RouterGatingLinearFunction`): a token between two
        experts goes elsewhere than on a CPU. Factors in BF16 lose nothing there.
        """
        rounded = self.config.moe_router_dtype != "fp64"  # which upstream leaves to torch
        if rounded and input.dtype == self.weight.dtype == torch.float32:
            return F.linear(input, self.weight, self.bias)
        return super().gating(input)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DeepSeekRouter":
        """Move or cast the module, the bias only moved: a cast would lose what it learned."""
        bias = self.expert_bias
        super()._apply(fn, recurse)
        if bias is not None and self.expert_bias.dtype != bias.dtype:
            self.expert_bias = bias.to(self.expert_bias.device)
        return self

    def routing(
        self, logits: Tensor, padding_mask: Tensor | RoutedSamples | None = None
    ) -> tuple[Tensor, Tensor]:
        """Choose experts and weigh them.

        Args:
            logits: [s, b, experts], the gate's output.
            padding_mask: [s, b], True where a token is padding, which is not counted; or of a pack
                the sample of each token, by which the balance loss tells sequences, and the experts
                where they are chosen already: their weights are of these logits all the same.

        Returns:
            probs: [s · b, experts], each token's weights of its experts, 0 elsewhere.
            routing_map: [s · b, experts], True where a token goes to an expert.
        """
        samples = padding_mask if isinstance(padding_mask, RoutedSamples) else None
        if samples is not None:
            padding_mask = samples.padding
        elif self.config.moe_router_fusion and routes_as(self.config):
            return super().routing(logits, padding_mask=padding_mask)
        seq_length, batch_size = logits.shape[:2]
        logits = logits.view(-1, self.num_experts)
        if padding_mask is not None:
            padding_mask = padding_mask.reshape(-1)
        logits = self.apply_z_loss(logits, padding_mask=padding_mask)

        scores = self._scores(logits)
        chosen = self._choose(scores.detach())
        if samples is not None and samples.experts is not None:
            chosen = torch.where(samples.experts == CHOSEN, chosen, samples.experts)
        weights = self._weigh(scores, chosen).type_as(logits)
        probs = torch.zeros_like(logits).scatter(1, chosen, weights)
        routing_map = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, chosen, True)

        if self.training and torch.is_grad_enabled() and self.is_aux_loss_enabled():
            counted, scores = compute_routing_scores_for_aux_loss(
                logits, self.topk, self.score_function, padding_mask=padding_mask
            )
            if self.score_function == "softmax":
                counted = _without_padding(routing_map, padding_mask)
            masked = padding_mask is not None
            probs = self._apply_aux_loss(probs, scores, counted, masked)
            if samples is None:
                shape = (seq_length, batch_size)
                probs = self._apply_seq_aux_loss(probs, scores, counted, *shape, masked)
            else:
                probs = self._apply_loss_of_samples(probs, scores, counted, samples)
            probs = self._apply_global_aux_loss(probs, scores, counted, masked)
        self._apply_expert_bias(routing_map, padding_mask)
        return probs, routing_map

    def _apply_expert_bias(self, routing_map: Tensor, padding_mask: Tensor | None = None) -> None:
        """Add this micro-batch's tokens to the counts that the bias update reads.

        Once per token: not in evaluation, nor in the first of a recomputed layer's two forwards.

        Args:
            routing_map: [tokens, experts]; padding_mask: [tokens].
        """
        if self.enable_expert_bias and torch.is_grad_enabled():
            counted = _without_padding(routing_map, padding_mask)
            self.local_tokens_per_expert += counted.sum(dim=0)

    def _apply_aux_loss(
        self, probs: Tensor, scores: Tensor, counted: Tensor, with_padding_mask: bool = False
    ) -> Tensor:
        """The balance loss of a micro-batch, attached to the weights."""
        if not with_padding_mask:
            return super()._apply_aux_loss(probs, scores, counted)
        return self._padded_balance_loss("aux_loss", probs, scores, counted, sequences=1)

    def _apply_seq_aux_loss(
        self,
        probs: Tensor,
        scores: Tensor,
        counted: Tensor,
        seq_length: int,
        bsz: int,
        with_padding_mask: bool = False,
    ) -> Tensor:
        """The balance loss of each sequence, attached to the weights."""
        if not with_padding_mask:
            return super()._apply_seq_aux_loss(probs, scores, counted, seq_length, bsz)
        return self._padded_balance_loss("seq_aux_loss", probs, scores, counted, sequences=bsz)

    def _padded_balance_loss(
        self, kind: str, probs: Tensor, scores: Tensor, counted: Tensor, sequences: int
    ) -> Tensor:
        """Equations 17 to 20 of each sequence's own tokens; of the sequences the mean by tokens.

        Upstream divides by the micro-batch's mean number of tokens instead, so that a sequence's
        loss depends on those beside it. Where gradients are summed over tokens, to be divided by
        their number at last, it weighs each rank's part of a sequence by the rank's tokens and not
        by the sequence's, so that the loss depends on how many ranks share it, and where on them
        the padding is.

        Args:
            kind: upstream's name of the loss.
            probs: what the loss is attached to.
            scores: normalised affinities, [s · b, experts]; counted: the experts chosen by them.
                Both are 0 where there is padding.
            sequences: b, each balanced for itself; 1 for all of them together.
        """
        coefficient = self.get_aux_loss_coeff(kind)
        if coefficient == 0:
            return probs
        group = self.tp_cp_group
        of_sequences = (-1, sequences, self.num_experts)
        mine = scores.reshape(of_sequences).sum(dim=0)
        chosen = reduce_from_tensor_model_parallel_region(
            counted.reshape(of_sequences).sum(dim=0), group
        )
        tokens = chosen.sum(dim=-1) / self.topk
        every = tokens.sum()
        losses = (chosen * mine).sum(dim=-1) * self.num_experts / self.topk
        # Tokens · loss, which is divided by the square of the tokens.
        loss = coefficient * (losses / tokens.clamp(min=1)).sum() / every.clamp(min=1)
        return self.attach_and_log_load_balancing_loss(
            probs, coefficient, loss, _LOGGED_AS[kind], group,
            valid_token_count=every / group.size(),
        )  # fmt: skip

    def _apply_loss_of_samples(
        self, probs: Tensor, scores: Tensor, counted: Tensor, samples: RoutedSamples
    ) -> Tensor:
        """The sequence-wise balance loss, of each sample by itself (equations 17 to 20).

        Upstream takes a row for one sequence. A sample has the weight of its tokens in the loss, so
        that the mean over samples is in the same place beside the loss of tokens however they are
        packed; `calculate_per_token_loss` divides both by all tokens in the loss.

        Args:
            probs: [t, experts], what the gradient of the loss is attached to.
            scores: [t, experts], affinities that add up to 1, of padding 0.
            counted: [t, experts], True where a token counts for an expert.
            samples: of the tokens.
        """
        coefficient = self.get_aux_loss_coeff("seq_aux_loss")
        if coefficient == 0:
            return probs
        of_token = samples.numbers.clamp(min=0)
        blank = scores.new_zeros(len(samples.lengths), self.num_experts)
        counts = blank.index_add(0, of_token, counted.to(scores.dtype))
        affinities = blank.index_add(0, of_token, scores)
        if self.tp_cp_group.size() > 1:
            torch.distributed.all_reduce(counts, group=self.tp_cp_group)
        lengths = samples.lengths.clamp(min=1)
        losses = (counts * affinities).sum(dim=1) * (
            coefficient * self.num_experts / (self.topk * lengths * lengths)
        )
        total = (losses * samples.weights).sum()
        every = samples.weights.sum().clamp(min=1)
        return self.attach_and_log_load_balancing_loss(
            probs, coefficient, total / every, _LOGGED_AS["seq_aux_loss"], self.tp_cp_group,
            valid_token_count=every / self.tp_cp_group.size(),
        )  # fmt: skip

    @torch.no_grad()
    def choose(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Experts and their weights of tokens that nothing is learned from.

        Args:
            hidden: [t, h].

        Returns:
            experts [t, top-k] in no particular order, and their weights in the type of the router's
            logits.
        """
        precision = _PRECISION.get(self.config.moe_router_dtype, hidden.dtype)
        logits = F.linear(hidden.to(precision), self.weight.to(precision))
        scores = self._scores(logits)
        experts = self._choose(scores)
        return experts, self._weigh(scores, experts).type_as(logits)

    def _scores(self, logits: Tensor) -> Tensor:
        """Affinities in FP32, [tokens, experts]."""
        if self.score_function == "sigmoid":
            return torch.sigmoid(logits.float())
        if self.config.moe_router_pre_softmax:
            return torch.softmax(logits, dim=-1, dtype=torch.float32)
        return logits.float()

    @torch.no_grad()
    def _choose(self, scores: Tensor) -> Tensor:
        """The experts of each token, [tokens, top-k], in no particular order."""
        if self.expert_bias is not None:
            scores = scores + self.expert_bias
        groups = self.config.moe_router_num_groups
        if groups is not None:
            grouped = scores.unflatten(1, (groups, -1))
            if self.score_function == "sigmoid":
                group_scores = grouped.topk(2, dim=-1).values.sum(dim=-1)
            else:
                group_scores = grouped.amax(dim=-1)
            allowed = group_scores.topk(self.config.moe_router_group_topk, dim=-1, sorted=False)
            forbidden = torch.ones_like(group_scores, dtype=torch.bool)
            forbidden.scatter_(1, allowed.indices, False)
            scores = grouped.masked_fill(forbidden[..., None], float("-inf")).flatten(1)
        return scores.topk(self.topk, dim=-1, sorted=False).indices

    def _weigh(self, scores: Tensor, chosen: Tensor) -> Tensor:
        """Weights of the chosen experts from unbiased scores, [tokens, top-k]."""
        weights = scores.gather(1, chosen)
        if self.score_function == "sigmoid":
            if self.topk > 1:
                weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        elif not self.config.moe_router_pre_softmax:
            weights = torch.softmax(weights, dim=-1)
        if self.config.moe_router_topk_scaling_factor:
            weights = weights * self.config.moe_router_topk_scaling_factor
        return weights


_PRECISION = {"fp32": torch.float32, "fp64": torch.float64}
_LOGGED_AS = {"aux_loss": "load_balancing_loss", "seq_aux_loss": "seq_load_balancing_loss"}


def _without_padding(routing_map: Tensor, padding_mask: Tensor | None) -> Tensor:
    return routing_map if padding_mask is None else routing_map & ~padding_mask[:, None]
