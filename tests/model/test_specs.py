"""The specs through upstream's own builder, as an unmodified command line uses them."""

import logging

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.training.models import gpt

from dsv3_plugin.model.attention import LatentAttention
from dsv3_plugin.model.build import build_model
from dsv3_plugin.model.config import transformer_config
from dsv3_plugin.model.core_attention import CausalAttention
from dsv3_plugin.model.experts import GroupedExperts
from dsv3_plugin.model.router import DeepSeekRouter
from dsv3_plugin.model.specs import deepseek_v3_spec
from dsv3_plugin.upstream import patching
from tests import oracles

MODEL = oracles.model_config(mtp_num_layers=1)


def upstreams_builder(config):
    return gpt.GPTModelBuilder(
        gpt.GPTModelConfig(
            transformer=config,
            transformer_layer_spec=deepseek_v3_spec,
            vocab_size=MODEL.vocab_size,
            seq_length=MODEL.max_position_embeddings,
            position_embedding_type="rope",
        )
    )


def build(builder):
    groups = ProcessGroupCollection.use_mpu_process_groups()
    return builder.build_model(groups, pre_process=True, post_process=True)


def test_upstreams_log_is_as_loud_after_a_model_is_built_as_before():
    logger = logging.getLogger("megatron.core.models.gpt.gpt_model")
    logger.setLevel(logging.INFO)
    try:
        build_model(MODEL)
        assert logger.level == logging.INFO
    finally:
        logger.setLevel(logging.NOTSET)


def test_a_model_is_built_where_this_rank_computes(monkeypatch):
    """A GPU, where there is one; upstream makes routers on the host, and torch its norms."""
    moved = []
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: moved.append(self) or self)
    assert moved == [build_model(MODEL)]


@pytest.fixture(autouse=True)
def _unregistered():
    """Called by upstream's builder, the spec registers the patches: the next test starts clean."""
    yield
    patching.unregister()


def test_upstreams_builder_builds_our_model():
    theirs = build(upstreams_builder(transformer_config(MODEL)))
    ours = build_model(MODEL)
    shapes = {name: p.shape for name, p in ours.named_parameters()}
    assert {name: p.shape for name, p in theirs.named_parameters()} == shapes
    blocks = [*theirs.decoder.layers, theirs.mtp.layers[0].mtp_model_layer]
    for layer in blocks:
        assert isinstance(layer.self_attention, LatentAttention)
        assert isinstance(layer.self_attention.core_attention, CausalAttention)
    for layer in blocks[1:]:
        assert isinstance(layer.mlp.router, DeepSeekRouter)
        assert isinstance(layer.mlp.experts, GroupedExperts)


def test_without_the_patch_upstream_cannot_build_mtp(monkeypatch):
    # Why `mtp_block_spec` stands in the table: upstream ignores --spec for MTP, and its own local
    # spec gives MLA a core attention that does not take its head sizes.
    monkeypatch.setattr(patching, "apply", lambda rows: None)
    with pytest.raises(TypeError, match="k_channels"):
        build(upstreams_builder(transformer_config(MODEL)))


def test_layers_are_dense_or_moe_as_configured():
    model = oracles.model_config(num_layers=4, moe_layer_freq="[1,0,0,1]")
    layers = build_model(model).decoder.layers
    assert [layer.is_moe_layer for layer in layers] == [True, False, False, True]


def test_distributed_checkpoint_keys_are_upstreams():
    """Ours against upstream's own experts in the same model: same keys, same global shapes."""

    def entries(built):
        from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

        found = {}
        metadata = {"dp_cp_group": ProcessGroupCollection.use_mpu_process_groups().dp_cp}
        for value in built.sharded_state_dict(metadata=metadata).values():
            parts = value.build() if isinstance(value, ShardedTensorFactory) else [value]
            for part in parts if isinstance(parts, list) else parts.values():
                shape = part.global_shape if isinstance(part, ShardedTensor) else "object"
                found[part.key] = tuple(shape) if shape != "object" else shape
        return found

    ours = build_model(MODEL)
    upstreams = build_model(MODEL)
    for module in upstreams.modules():
        experts = getattr(module, "experts", None)
        if isinstance(experts, GroupedExperts):
            from megatron.core.models.backends import LocalSpecProvider

            make = LocalSpecProvider().grouped_mlp_modules(False)
            module.experts = make(
                16, upstreams.config, pg_collection=ProcessGroupCollection.use_mpu_process_groups()
            )
            assert isinstance(module.experts, SequentialMLP)
    assert entries(ours) == entries(upstreams)


def test_packed_samples_do_not_see_each_other():
    from megatron.core.packed_seq_params import PackedSeqParams

    built = build_model(oracles.model_config()).eval()
    oracles.randomize(built, seed=4)
    draw = torch.Generator().manual_seed(0)
    samples = [torch.randint(96, (1, length), generator=draw) for length in (7, 1, 12)]
    ends = torch.tensor([0, 7, 8, 20], dtype=torch.int32)
    packed = PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=ends, cu_seqlens_kv=ends, max_seqlen_q=12, max_seqlen_kv=12
    )
    with torch.no_grad():
        alone = [built(s, torch.arange(s.shape[1])[None], None) for s in samples]
        tokens = torch.cat(samples, dim=1)
        positions = torch.cat([torch.arange(s.shape[1]) for s in samples])[None]
        together = built(tokens, positions, None, packed_seq_params=packed)
    torch.testing.assert_close(together, torch.cat(alone, dim=1), rtol=0, atol=1e-5)


def test_device_contexts_work_on_the_cpu_host():
    # transformers loads inside one, and a full-size model is looked at on `meta`.
    with torch.device("meta"):
        assert torch.empty(2).is_meta
        assert torch.nn.Linear(2, 2).weight.is_meta
