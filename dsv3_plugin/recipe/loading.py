"""The command line by which Megatron-LM's own `pretrain_gpt.py` loads a checkpoint.

What the model is, which layers compute it, and where its weights lie are said in full; the rest is
the least that upstream asks for, on data that it makes up.
"""

import shlex
from collections.abc import Iterator
from pathlib import Path

from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe.arguments import Flag, Spec, kernel_flags, model_flags
from dsv3_plugin.recipe.model import ModelConfig

PROGRAM = ("torchrun", "--nproc-per-node", "1", "pretrain_gpt.py")


def loading_arguments(
    model: ModelConfig,
    checkpoint: Path,
    *,
    step: int | None,
    seq_length: int,
    dtype: str,
    tokenizer: Path | None,
    backend: str,
    on_gpu: bool,
    spec: Spec,
) -> list[tuple[str, ...]]:
    """Each flag with its values.

    Args:
        model: what the checkpoint is of.
        checkpoint: its folder, with upstream's tracker file.
        step: of the checkpoint, where the tracker file names another.
        seq_length: tokens of a sequence.
        dtype: what its weights are stored in: `bfloat16`, `float32` or `float16`.
        tokenizer: the folder of the tokenizer; None: there is none, and ids alone are used.
        backend: `transformer_engine` or `local`.
        on_gpu: whether there are GPUs.
        spec: what makes the layers.

    Raises:
        UserError: no flag says what the model is.
    """
    groups = (
        # Unfused: plain RoPE under its own name, whichever layers compute it.
        model_flags(model, fused=False),
        kernel_flags(backend, spec, on_gpu=on_gpu),
        _run(model, checkpoint, step, seq_length, dtype, tokenizer),
    )
    flags = [(f"--{name}", *map(str, values)) for group in groups for name, *values in group]
    return flags if ("--no-rope-fusion",) in flags else [*flags, ("--no-rope-fusion",)]


def loading_command(flags: list[tuple[str, ...]]) -> list[str]:
    """The flags as a whole command in shell text, one flag a line."""
    *first, last = (shlex.join(words) for words in (PROGRAM, *flags))
    return [f"{line} \\" for line in first] + [last]


def _run(
    model: ModelConfig,
    checkpoint: Path,
    step: int | None,
    seq_length: int,
    dtype: str,
    tokenizer: Path | None,
) -> Iterator[Flag]:
    if dtype == "bfloat16":
        yield ("bf16",)
    elif dtype == "float16":
        yield ("fp16",)
    elif dtype != "float32":
        raise UserError(
            f"{checkpoint} holds weights in {dtype}, from which nothing is computed: import them "
            "again without --dtype keep-fp8."
        )
    yield "tensor-model-parallel-size", 1
    yield "pipeline-model-parallel-size", 1
    if model.moe_layers:
        yield "expert-model-parallel-size", 1
        yield "expert-tensor-parallel-size", 1
        yield "moe-token-dispatcher-type", "alltoall"
    yield "seq-length", seq_length
    yield "micro-batch-size", 1
    yield "global-batch-size", 1
    yield "train-iters", 10
    yield "lr", 1e-5
    yield "lr-decay-style", "constant"
    yield "eval-iters", 0
    yield "eval-interval", 1000
    yield "log-interval", 1
    if tokenizer is None:
        yield "tokenizer-type", "NullTokenizer"
        yield "vocab-size", model.vocab_size - 1  # it adds one of its own
    else:
        yield "tokenizer-type", "HuggingFaceTokenizer"
        yield "tokenizer-model", tokenizer
    yield ("mock-data",)
    yield ("no-create-attention-mask-in-dataloader",)
    yield "ckpt-format", "torch_dist"
    yield "load", checkpoint
    if step is not None:
        yield "ckpt-step", step
    yield ("finetune",)  # the weights alone, from step 0
    yield ("exit-on-missing-checkpoint",)  # upstream trains drawn weights where it finds none
