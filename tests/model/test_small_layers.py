"""Norm, SwiGLU, loss and sorting of tokens: each against what it takes the place of."""

import pytest
import torch
import torch.nn.functional as F
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher

from dsv3_plugin.model import loss as losses
from dsv3_plugin.model.build import build_model
from dsv3_plugin.model.config import transformer_config
from dsv3_plugin.model.moe import OneRankDispatcher
from dsv3_plugin.model.norm import RMSNorm
from dsv3_plugin.model.swiglu import _SwiGLU
from tests import oracles

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_rms_norm():
    norm = RMSNorm(transformer_config(oracles.model_config()), 32, 1e-5)
    with torch.no_grad():
        norm.weight.copy_(noise(32))
    results = []
    for function in (norm, lambda x: F.rms_norm(x, (32,), norm.weight, 1e-5)):
        norm.zero_grad()
        x = noise(7, 3, 32, seed=1).requires_grad_()
        out = function(x)
        out.backward(noise(7, 3, 32, seed=2))
        results.append((out.detach(), x.grad, norm.weight.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_swiglu():
    results = []
    for function in (_SwiGLU.apply, lambda y: F.silu(y[..., :10]) * y[..., 10:]):
        y = noise(5, 2, 20).requires_grad_()
        out = function(y)
        out.backward(noise(5, 2, 10, seed=1))
        results.append((out.detach(), y.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_is_upstreams(dtype):
    group = ProcessGroupCollection.use_mpu_process_groups(["tp"]).tp
    labels = torch.randint(50, (6, 3), generator=torch.Generator().manual_seed(0))
    results = []
    upstreams = vocab_parallel_cross_entropy
    for loss_of in (losses.vocab_parallel_cross_entropy(upstreams), upstreams):
        logits = (4 * noise(6, 3, 50)).to(dtype).requires_grad_()
        loss = loss_of(logits * 1, labels, tp_group=group)
        loss.backward(noise(6, 3, seed=1))
        results.append((loss.detach(), logits.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_sorting_on_one_rank_is_upstreams_dispatch():
    config = transformer_config(oracles.model_config())
    groups = ProcessGroupCollection.use_mpu_process_groups()
    scores = noise(21, 16)
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen.scatter_(1, scores.topk(4).indices, True)
    results = []
    for dispatcher in (
        OneRankDispatcher(config, groups),
        MoEAlltoAllTokenDispatcher(16, list(range(16)), config, groups),
    ):
        tokens = noise(7, 3, 32, seed=1).requires_grad_()
        probs = (scores.sigmoid() * chosen).requires_grad_()
        rows, row_probs = dispatcher.dispatch_preprocess(tokens, chosen, probs)
        rows, row_probs = dispatcher.token_dispatch(rows, row_probs)
        rows, counts, row_probs = dispatcher.dispatch_postprocess(rows, row_probs)
        # Something that differs for each expert and row.
        expert = torch.repeat_interleave(torch.arange(16), counts)[:, None]
        out = (rows * (1 + expert)).sin() * row_probs[:, None]
        out = dispatcher.token_combine(dispatcher.combine_preprocess(out))
        out = dispatcher.combine_postprocess(out)
        out.backward(noise(7, 3, 32, seed=2))
        results.append((rows.detach(), counts, out.detach(), tokens.grad, probs.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


def test_the_short_way_is_taken_on_one_rank():
    layer = build_model(oracles.model_config()).decoder.layers[1].mlp
    assert isinstance(layer.token_dispatcher, OneRankDispatcher)
