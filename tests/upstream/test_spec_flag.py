"""Upstream's own argument parser and `pretrain`, driven as Megatron-LM's pretrain_gpt.py does.

Nothing of the plugin's trainer is involved: a `--spec` on the command line, the host that a machine
without a GPU needs, and upstream's mock data.
"""

import os
import sys
from functools import partial
from pathlib import Path

import torch

from tests.gloo_ranks import run_ranks

COMMAND = """
--spec dsv3_plugin.model.specs deepseek_v3_spec --transformer-impl local
--num-layers 2 --hidden-size 64 --ffn-hidden-size 128 --num-attention-heads 2 --kv-channels 16
--max-position-embeddings 64 --seq-length 64 --normalization RMSNorm --swiglu
--disable-bias-linear --untie-embeddings-and-output-weights --position-embedding-type rope
--attention-dropout 0 --hidden-dropout 0 --init-method-std 0.02
--multi-latent-attention --qk-layernorm --q-lora-rank 32 --kv-lora-rank 32 --qk-head-dim 16
--qk-pos-emb-head-dim 8 --v-head-dim 16 --rope-type rope --mscale 1.0 --mscale-all-dim 1.0
--num-experts 8 --moe-layer-freq ([0]*1+[1]*1) --moe-ffn-hidden-size 32
--moe-shared-expert-intermediate-size 32 --moe-router-topk 2 --moe-router-num-groups 4
--moe-router-group-topk 2 --moe-router-score-function sigmoid --moe-router-dtype fp32
--moe-router-topk-scaling-factor 2.5 --moe-router-enable-expert-bias
--moe-router-load-balancing-type seq_aux_loss --moe-aux-loss-coeff 1e-4
--moe-token-dispatcher-type alltoall --expert-model-parallel-size 2 --mtp-num-layers 1
--no-gradient-accumulation-fusion --no-masked-softmax-fusion --no-persist-layer-norm
--no-rope-fusion --distributed-backend gloo --no-create-attention-mask-in-dataloader
--micro-batch-size 4 --global-batch-size 8 --train-iters 8 --lr 4e-3 --lr-decay-style constant
--eval-iters 0 --eval-interval 100 --log-interval 1 --num-workers 0 --no-one-logger
--mock-data --tokenizer-type NullTokenizer --vocab-size 128
"""


def pretrain_gpt(rank: int, log: Path) -> tuple[list[tuple[float, float]], set[str]]:
    """What pretrain_gpt.py does with that command line.

    Returns the loss of each step, and MTP's; and what kinds of routers the model has.
    """
    os.environ["WORLD_SIZE"] = "2"  # upstream's arguments read it before there is a process group
    import dsv3_plugin.data.patches
    import dsv3_plugin.upstream.patches
    from dsv3_plugin.upstream import patching

    # What a host without CUDA needs, and the wheel, which has no Makefile for upstream's helper to
    # be compiled with; nothing else. The rest of the table is for the spec to apply.
    for_the_host = [patch for patch in dsv3_plugin.upstream.patches.PATCHES if patch.cpu_only]
    patching.apply([*for_the_host, *dsv3_plugin.data.patches.PATCHES])

    from megatron.core.datasets.blended_megatron_dataset_builder import (
        BlendedMegatronDatasetBuilder,
    )
    from megatron.core.datasets.gpt_dataset import GPTDatasetConfig, MockGPTDataset
    from megatron.core.enums import ModelType
    from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper
    from megatron.training import get_args, get_tokenizer, pretrain
    from megatron.training.argument_utils import (
        gpt_config_from_args,
        pretrain_cfg_container_from_args,
    )
    from megatron.training.arguments import parse_and_validate_args

    losses, routers = [], set()

    def datasets(sizes: list[int], vp_stage: int | None = None):
        args = get_args()
        config = GPTDatasetConfig(
            random_seed=args.seed,
            sequence_length=args.seq_length,
            split="100,0,0",
            tokenizer=get_tokenizer(),
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
        )
        return BlendedMegatronDatasetBuilder(MockGPTDataset, sizes, lambda: True, config).build()

    datasets.is_distributed = True

    def mean(mask: torch.Tensor, output: torch.Tensor):
        total, tokens = (output * mask).sum(), mask.sum().int()
        ahead = MTPLossLoggingHelper.tracker["loss_values"].clone()
        losses.append((float(total / tokens), float(ahead)))
        return total, tokens, {"lm loss": torch.stack([total.detach(), tokens.float()])}

    def forward_step(data, model):
        routers.update(
            type(module).__name__
            for name, module in model.named_modules()
            if name.endswith(".router")
        )
        batch = next(data)
        output = model(
            batch["tokens"],
            batch["position_ids"],
            None,
            labels=batch["labels"],
            loss_mask=batch["loss_mask"],
        )
        return output, partial(mean, batch["loss_mask"])

    sys.argv = ["pretrain_gpt.py", *COMMAND.split()]
    with log.open("w") as stream:
        sys.stdout = sys.stderr = stream
        parse_and_validate_args()
        model = gpt_config_from_args(get_args())
        container = pretrain_cfg_container_from_args(get_args(), model)
        pretrain(container, datasets, ModelType.encoder_or_decoder, forward_step)
    return losses, routers


def test_loss_falls_with_nothing_but_the_spec(tmp_path):
    per_rank = run_ranks(2, pretrain_gpt, tmp_path / "log", scratch=tmp_path)
    for losses, routers in per_rank:
        assert routers == {"DeepSeekRouter"}  # the MTP layer's too
        assert len(losses) == 8
        (first, first_ahead), (last, last_ahead) = losses[0], losses[-1]
        assert abs(first - 4.85) < 0.1  # ln 128
        assert last < first - 1.0
        assert last_ahead < first_ahead - 0.5
