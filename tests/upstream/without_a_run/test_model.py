"""What model/ replaces."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core import tensor_parallel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer import multi_token_prediction
from megatron.training.models import gpt

from tests.upstream.stock_gpt import TOKENS, stock_gpt
from tests.upstream.without_a_run.covering import both, of


@of(
    "megatron.core.tensor_parallel:vocab_parallel_cross_entropy",
    "megatron.core.tensor_parallel.random:CheckpointWithoutOutput.__init__",
)
@pytest.mark.parametrize("ignored", [False, True], ids=["all labels", "some of them ignored"])
@pytest.mark.parametrize("recompute", [{}, {"recompute_granularity": "full"}], ids=str)
def test_upstreams_model_has_the_same_losses_and_gradients(ignored, recompute):
    if recompute:
        recompute = recompute | {"recompute_method": "uniform", "recompute_num_layers": 1}

    def computed() -> list[torch.Tensor]:
        tensor_parallel.model_parallel_cuda_manual_seed(4, force_reset_rng=True)
        model = stock_gpt(**recompute).train()
        labels = TOKENS.roll(-1, 1)
        labels = labels.masked_fill(labels % 3 == 0, -100) if ignored else labels
        losses = model(TOKENS, torch.arange(TOKENS.shape[1])[None], None, labels=labels)
        losses[labels >= 0].mean().backward()
        return [losses.detach(), *(parameter.grad for parameter in model.parameters())]

    before, after = both(computed)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-7)


@of("megatron.training.models.gpt:mtp_block_spec")
def test_upstreams_layers_keep_upstreams_mtp():
    config = SimpleNamespace(
        transformer=stock_gpt(mtp_num_layers=1, transformer_impl="local").config
    )
    spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    before, after = both(lambda: gpt.mtp_block_spec(config, spec, vp_stage=None))
    assert repr(after) == repr(before)
    assert "dsv3_plugin" not in repr(after)


@of("megatron.core.tensor_parallel.layers:ColumnParallelLinear.__init__")
def test_a_head_without_fused_accumulation_is_built_as_upstream_builds_it():
    def built() -> tuple[Any, ...]:
        model = stock_gpt()
        head = model.output_layer
        return head.config is model.config, head.gradient_accumulation_fusion, head.weight.shape

    before, after = both(built)
    assert after == before
    assert after[:2] == (True, False)


@of("megatron.core.transformer.multi_token_prediction:MultiTokenPredictionLayer._get_embeddings")
def test_a_layer_that_predicts_ahead_has_upstreams_mask_of_padding():
    layer = SimpleNamespace(cp_group=None, config=SimpleNamespace(mtp_detach_heads=False))
    ids, hidden = torch.arange(4)[None], torch.zeros(4, 1, 2)
    padding = torch.tensor([[False, False, True, True]])

    def embed(input_ids, position_ids):
        return input_ids.float()

    def shifted() -> torch.Tensor:
        # Looked up at the moment of use: the row replaces it in the class.
        get = multi_token_prediction.MultiTokenPredictionLayer._get_embeddings
        return get(layer, ids, ids, embed, hidden, None, padding)[2]

    before, after = both(shifted)
    assert torch.equal(before, after)


@of("megatron.core.transformer.multi_token_prediction:roll_tensor")
def test_labels_are_rolled_as_ever_on_one_rank_and_in_packs_without_padding():
    ends = torch.tensor([0, 3, 8], dtype=torch.int32)
    pack = PackedSeqParams(qkv_format="thd", cu_seqlens_q=ends, cu_seqlens_kv=ends)
    labels = torch.arange(1, 9)[None]

    def rolled() -> list[tuple[torch.Tensor, torch.Tensor]]:
        roll = multi_token_prediction.roll_tensor
        return [roll(labels), roll(labels, packed_seq_params=pack)]

    before, after = both(rolled)
    for (ours, count), (theirs, counted) in zip(after, before, strict=True):
        assert torch.equal(ours, theirs)
        assert count == counted


@of("megatron.core.transformer.multi_token_prediction:process_mtp_loss")
def test_labels_further_ahead_weigh_as_ever_on_one_rank():
    config = SimpleNamespace(
        mtp_num_layers=1, mtp_detach_heads=False, mtp_loss_scaling_factor=0.3,
        calculate_per_token_loss=True,
    )  # fmt: skip
    draw = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(8, 1, 4, generator=draw), torch.randn(6, 4, generator=draw)
    labels, mask = torch.tensor([[5, 0, 3, 2]]), torch.tensor([[0.0, 1.0, 1.0, 1.0]])

    def head(states, weight, runtime_gather_output):
        return states @ weight.t(), None

    def loss(labels, logits):
        return torch.nn.functional.cross_entropy(logits.permute(1, 2, 0), labels, reduction="none")

    def gradients() -> tuple[torch.Tensor, ...]:
        leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        process = multi_token_prediction.process_mtp_loss
        out = process(leaves[0], labels, mask, head, leaves[1], None, False, loss, config)
        return torch.autograd.grad(out.sum(), leaves)

    before, after = both(gradients)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert before[1].abs().max() > 0
