"""Norm, SwiGLU, loss and sorting of tokens: each against what it takes the place of."""

import pytest
import torch
import torch.nn.functional as F
from megatron.core import parallel_state
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
from tests.gloo_ranks import run_ranks

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
DTYPES = (torch.float32, torch.bfloat16)


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


LABELS = {
    "in the vocabulary": lambda labels: labels,
    "some ignored": lambda labels: labels.masked_fill(labels % 3 == 0, -100),
    "all ignored": lambda labels: torch.full_like(labels, -100),
    "past the end": lambda labels: labels + 20,
    "the first and the last": lambda labels: 49 * (labels % 2),
    "just outside": lambda labels: 51 * (labels % 2) - 1,
}


def losses_and_gradients(loss_of, labels, dtype, **arguments):
    """Of logits that upstream may overwrite; the part of a rank where there are several."""
    logits = (4 * noise(6, 3, 50)).to(dtype)
    part = torch.distributed.get_rank() if torch.distributed.get_world_size() == 2 else None
    logits = (logits if part is None else logits.chunk(2, -1)[part]).contiguous().requires_grad_()
    loss = loss_of(logits * 1, labels, **arguments)
    loss.backward(noise(6, 3, seed=1))
    return loss.detach(), logits.grad


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_is_upstreams(dtype, labels):
    labels = labels(torch.randint(50, (6, 3), generator=torch.Generator().manual_seed(0)))
    group = ProcessGroupCollection.use_mpu_process_groups(["tp"]).tp
    ours = losses.vocab_parallel_cross_entropy(vocab_parallel_cross_entropy)
    for arguments in ({"tp_group": group}, {}, {"label_smoothing": 0.1}):
        loss, gradient = losses_and_gradients(ours, labels, dtype, **arguments)
        expected = losses_and_gradients(vocab_parallel_cross_entropy, labels, dtype, **arguments)
        torch.testing.assert_close(loss, expected[0], **CLOSE)
        # FP32 inside on both sides: a rounding to BF16 may fall either way.
        rtol = 1e-5 if dtype == torch.float32 else 2**-7
        torch.testing.assert_close(gradient, expected[1], rtol=rtol, atol=1e-6)


def cross_entropy_on_two_ranks(rank):
    """Ours and upstream's with the vocabulary on two ranks, and with all of it on one."""
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=2)
    ours = losses.vocab_parallel_cross_entropy(vocab_parallel_cross_entropy)
    drawn = torch.randint(50, (6, 3), generator=torch.Generator().manual_seed(0))
    return [
        losses_and_gradients(loss_of, labels(drawn), dtype)
        for labels in LABELS.values()
        for dtype in DTYPES
        for loss_of in (ours, vocab_parallel_cross_entropy)
    ]


def test_cross_entropy_with_the_vocabulary_on_two_ranks(tmp_path):
    ranks = run_ranks(2, cross_entropy_on_two_ranks, scratch=tmp_path)
    ours = losses.vocab_parallel_cross_entropy(vocab_parallel_cross_entropy)
    drawn = torch.randint(50, (6, 3), generator=torch.Generator().manual_seed(0))
    settings = [(labels, dtype) for labels in LABELS.values() for dtype in DTYPES]
    for number, (labels, dtype) in enumerate(settings):
        on_one = losses_and_gradients(ours, labels(drawn), dtype)
        for which in (0, 1):  # ours, upstream's
            results = [rank[2 * number + which] for rank in ranks]
            assert all(torch.equal(loss, results[0][0]) for loss, _ in results)
            torch.testing.assert_close(results[0][0], on_one[0], **CLOSE)
            gradient = torch.cat([gradient for _, gradient in results], dim=-1)
            rtol = 1e-5 if dtype == torch.float32 else 2**-7
            torch.testing.assert_close(gradient, on_one[1], rtol=rtol, atol=1e-6)


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
