"""Causal attention in blocks, with masks and with a cache, against torch's own in FP64."""

import math

import pytest
import torch
import torch.nn.functional as F
from megatron.core.transformer.enums import AttnMaskType

from dsv3_plugin.errors import UserError
from dsv3_plugin.model.config import transformer_config
from dsv3_plugin.model.core_attention import LONGEST_KEPT, CausalAttention
from tests import oracles

HEADS, D, DV = 3, 12, 10
SCALE = 0.3


def attention(**overrides):
    return CausalAttention(
        transformer_config(oracles.model_config(), **overrides),
        layer_number=1,
        attn_mask_type=AttnMaskType.causal,
        attention_type="self",
        softmax_scale=SCALE,
        k_channels=D,
        v_channels=DV,
    )


def tensors(queries, keys=None, batch=2, dtype=torch.float32):
    draw = torch.Generator().manual_seed(queries)
    sizes = (queries, D), (keys or queries, D), (keys or queries, DV)
    return [
        torch.randn(length, batch, HEADS, width, generator=draw).to(dtype).requires_grad_()
        for length, width in sizes
    ]


def reference(query, key, value, hidden=None):
    """[s, b, heads · d of values] in FP64, by the formula."""
    q, k, v = (t.double().permute(1, 2, 0, 3) for t in (query, key, value))
    if hidden is None:
        hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
        hidden = hidden.triu(1 + k.shape[2] - q.shape[2])
    scores = (q @ k.transpose(2, 3) * SCALE).masked_fill(hidden, -math.inf)
    return (scores.softmax(-1) @ v).permute(2, 0, 1, 3).flatten(2)


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 100, LONGEST_KEPT + 1])
def test_values_and_gradients(length):
    batch = 1 if length > 100 else 2
    inputs = tensors(length, batch=batch)
    out = attention()(*inputs, None)
    expected = reference(*inputs)
    torch.testing.assert_close(out, expected.float(), rtol=0, atol=1e-5)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    ours = torch.autograd.grad(out, inputs, grad)
    theirs = torch.autograd.grad(expected, inputs, grad.double())
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_bf16():
    inputs = tensors(40, dtype=torch.bfloat16)
    out = attention()(*inputs, None)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), reference(*inputs).float(), rtol=0, atol=0.03)


def test_last_query_stands_at_last_key():
    inputs = tensors(3, keys=20)
    out = attention()(*inputs, None)
    torch.testing.assert_close(out, reference(*inputs).float(), rtol=0, atol=1e-5)


def test_a_mask_is_honoured():
    # Two documents of 5 and 7 tokens that do not see each other, as upstream's data loader says it.
    inputs = tensors(12, batch=1)
    hidden = torch.ones(12, 12, dtype=torch.bool).triu(1)
    hidden[5:, :5] = True
    out = attention()(*inputs, hidden[None, None])
    torch.testing.assert_close(out, reference(*inputs, hidden).float(), rtol=0, atol=1e-5)


def test_equals_torch():
    q, k, v = tensors(50)
    expected = F.scaled_dot_product_attention(
        *(t.permute(1, 2, 0, 3) for t in (q, k, v)), is_causal=True, scale=SCALE
    )
    out = attention()(q, k, v, None)
    torch.testing.assert_close(out, expected.permute(2, 0, 1, 3).flatten(2), rtol=0, atol=1e-5)


def test_what_is_not_supported_is_refused():
    with pytest.raises(UserError, match="dropout"):
        attention(attention_dropout=0.1)
