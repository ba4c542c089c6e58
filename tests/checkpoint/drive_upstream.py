"""Runs upstream's own trainer in a process of its own: load, one step that changes nothing, save.

    python drive_upstream.py MODEL.yaml SPEC LOAD SAVE [FLAG …]

SPEC is `upstream` (its local spec; its core attention does not take MLA's head sizes, so that one
class is lent to it), `ours` (through `--spec`) or `printed` (FLAG … is what `dsv3 args LOAD`
prints, and says all but how to train). With a learning rate of zero what it saves must
equal what it loaded. Of the table of patches only what a machine without a GPU needs is applied,
and with our spec its MTP counterpart.
"""

import sys
from functools import partial

import torch

from dsv3_plugin.model import SPEC
from dsv3_plugin.recipe import arguments
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.upstream import cpu_host

FLAGS = """
    --transformer-impl local --no-gradient-accumulation-fusion --no-masked-softmax-fusion
    --no-persist-layer-norm --no-rope-fusion --distributed-backend gloo --no-one-logger
    --micro-batch-size 1 --global-batch-size 1 --train-iters 1 --eval-iters 0 --eval-interval 100
    --lr 0 --lr-decay-style constant --weight-decay 0 --moe-router-bias-update-rate 0
    --seq-length 16 --tokenizer-type NullTokenizer --mock-data
    --no-create-attention-mask-in-dataloader --moe-token-dispatcher-type alltoall
    --ckpt-format torch_dist --save-interval 1
"""
STILL = """
    --train-iters 1 --lr 0 --weight-decay 0 --moe-router-bias-update-rate 0 --save-interval 1
    --no-one-logger
"""
"""Of two values of a flag the last counts."""


class Noise(torch.utils.data.Dataset):
    """Random tokens."""

    def __init__(self, vocab_size: int, length: int) -> None:
        self.vocab_size, self.length = vocab_size, length

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        draw = torch.Generator().manual_seed(index)
        text = torch.randint(self.vocab_size, (self.length + 1,), generator=draw)
        return {"tokens": text[:-1], "labels": text[1:]}


def main(model_file: str, spec: str, load: str, save: str, *flags: str) -> None:
    model = ModelConfig.read(model_file)
    cpu_host.enable()
    import megatron.core.datasets.utils as data_utils
    from megatron.core.enums import ModelType
    from megatron.core.models import backends
    from megatron.training import get_args, pretrain, training
    from megatron.training.argument_utils import (
        gpt_config_from_args,
        pretrain_cfg_container_from_args,
    )
    from megatron.training.arguments import parse_and_validate_args
    from megatron.training.models import gpt

    from dsv3_plugin.model.core_attention import CausalAttention
    from dsv3_plugin.model.layers import mtp_block_spec

    argv = [*FLAGS.split(), "--vocab-size", str(model.vocab_size - 1), "--save", save, *flags]
    if spec == "ours":
        argv += ["--spec", *SPEC]
    argv += ["--load", load, "--finetune"]
    of_model = arguments.model_flags(model, fused=False)
    argv += [str(word) for flag in of_model for word in (f"--{flag[0]}", *flag[1:])]
    if spec == "printed":
        argv = [*flags, *STILL.split(), "--save", save]
    sys.argv = ["drive_upstream", *argv]
    if spec == "upstream":
        backends.LocalSpecProvider.core_attention = lambda self: CausalAttention
    elif spec == "ours":
        gpt.mtp_block_spec = mtp_block_spec
    data_utils.compile_helpers = lambda: None  # the wheel ships them compiled
    training.initialize_megatron = cpu_host.initialize_megatron(training.initialize_megatron)
    parse_and_validate_args()
    args = get_args()
    positions = torch.arange(args.seq_length)[None]

    def loss(labels: torch.Tensor, losses: torch.Tensor) -> tuple:
        total, count = losses.float().sum(), torch.tensor(labels.numel(), dtype=torch.int)
        return total, count, {"lm loss": torch.stack([total.detach(), count.float()])}

    def forward_step(batches, chunk):
        batch = next(batches) if batches is not None else None
        tokens, labels = (batch["tokens"], batch["labels"]) if batch else (None, None)
        mask = torch.ones(1, args.seq_length)
        output = chunk(tokens, positions, None, labels=labels, loss_mask=mask)
        return output, partial(loss, labels if labels is not None else mask)

    def datasets(_):
        return Noise(model.vocab_size, args.seq_length), None, None

    datasets.is_distributed = True  # every tensor-parallel rank has the same
    container = pretrain_cfg_container_from_args(args, gpt_config_from_args(args))
    pretrain(container, datasets, ModelType.encoder_or_decoder, forward_step)


if __name__ == "__main__":
    main(*sys.argv[1:])
