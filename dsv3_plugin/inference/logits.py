"""Logits of given tokens, from the main head and from the multi-token prediction layers."""

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor
from torch.nn.functional import cross_entropy

_POSITIONS_AT_ONCE = 1024
"""530 MB of logits with DeepSeek-V3's vocabulary."""


@torch.no_grad()
def main_logits(model: GPTModel, tokens: Tensor) -> Tensor:
    """What the model expects after each token.

    Args:
        model: a whole model (all layers on this process).
        tokens: int64 ids, [b, s].

    Returns:
        FP32 logits [b, s, vocab], where the model is; position t is about token t + 1.
    """
    model.eval()
    return head(model, _hidden(model, _beside(model, tokens)))


@torch.no_grad()
def mtp_logits(model: GPTModel, tokens: Tensor) -> Tensor:
    """What each multi-token prediction layer expects (DeepSeek-V3, arXiv 2412.19437 section 2.2).

    Args:
        model: a whole model with MTP layers.
        tokens: int64 ids, [b, s].

    Returns:
        FP32 logits [b, s, depth, vocab]. Layer d (from 1) at position t has seen token t + d and is
        about token t + 1 + d; past the end of the text it sees token 0 instead.
    """
    model.eval()
    tokens = _beside(model, tokens)
    hidden = _hidden(model, tokens)
    stacked = model.mtp(
        input_ids=tokens,
        position_ids=positions(tokens),
        hidden_states=hidden,
        attention_mask=None,
        embedding=model.embedding,
    )
    _, *depths = stacked.chunk(1 + model.config.mtp_num_layers, dim=0)
    return torch.stack([head(model, depth) for depth in depths], dim=2)


@torch.no_grad()
def next_token_losses(model: GPTModel, tokens: Tensor) -> Tensor:
    """How unlikely each token was to a model, given those before it.

    Logits are made of some positions at a time: all of a long text's would be far more memory than
    the model.

    Args:
        model: a whole model (all layers on this process).
        tokens: int64 ids, [b, s + 1].

    Returns:
        FP32 cross-entropy in nats of all but the first, [b, s].
    """
    model.eval()
    tokens = _beside(model, tokens)
    hidden, next_tokens = _hidden(model, tokens[:, :-1]), tokens[:, 1:]
    pieces = [
        cross_entropy(head(model, some).transpose(1, 2), wanted, reduction="none")
        for some, wanted in zip(
            hidden.split(_POSITIONS_AT_ONCE), next_tokens.split(_POSITIONS_AT_ONCE, 1), strict=True
        )
    ]
    return torch.cat(pieces, dim=1)


def _beside(model: GPTModel, tokens: Tensor) -> Tensor:
    """Where the model is."""
    return tokens.to(next(model.parameters()).device)


def _hidden(model: GPTModel, tokens: Tensor) -> Tensor:
    """The main model's last hidden states after its final norm, [s, b, h]."""
    embedded = model.embedding(input_ids=tokens, position_ids=positions(tokens))
    return model.decoder(hidden_states=embedded, attention_mask=None)


def head(model: GPTModel, hidden: Tensor) -> Tensor:
    """FP32 logits [b, s, vocab] of hidden states [s, b, h]."""
    weight = None
    if model.share_embeddings_and_output_weights:
        weight = model.shared_embedding_or_output_weight()
    logits, _ = model.output_layer(hidden, weight=weight, runtime_gather_output=True)
    return logits.transpose(0, 1).float()


def positions(tokens: Tensor) -> Tensor:
    """0, 1, 2, … for every sequence of token ids [b, s]."""
    return torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
