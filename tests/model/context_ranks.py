"""One step of a small model, whole on one rank and divided over ranks, tokens and heads.

What ranks of tests/model/test_latent_context.py run, each case with the same weights and batches
twice: with every sequence and all heads on one rank, and on several with each its part of them. The
step is upstream's, with its scales of losses and its reduction of gradients; the loss is the
product's.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import dsv3_plugin
from dsv3_plugin.checkpoint.live_model import distributed_tensors
from dsv3_plugin.distributed.zigzag import Zigzag, taken
from dsv3_plugin.upstream import own_run
from tests import oracles, whole_tensors
from tests.whole_tensors import Part

LENGTH, BATCH, MICRO_BATCHES = 48, 2, 2

Weights = dict[str, torch.Tensor]
"""By their keys in a checkpoint."""


@dataclass(frozen=True)
class Case:
    """What a step is made of.

    Attributes:
        model: changes of the small model.
        config: fields of MLATransformerConfig.
        context, expert, tensor: degrees of parallelism.
        samples: tokens of each sample of a pack and of the padding behind it; none: no packs.
        padded: places at the end of each sequence that are filled up, of which routers are told;
            the loss is then the mean over tokens, as where documents stay whole.
        masked: the first tokens of each sequence that do not count in the loss.
        dtype: of the weights.
    """

    model: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    context: int = 2
    expert: int = 1
    tensor: int = 1
    samples: tuple[tuple[int, int], ...] = ()
    padded: tuple[int, ...] = ()
    masked: int = 0
    dtype: torch.dtype = torch.float32

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sample with its padding."""
        return tuple(map(sum, self.samples)) or (LENGTH,)

    @property
    def sizes(self) -> tuple[tuple[str, int], ...]:
        """Degrees of parallelism by upstream's names."""
        return (
            ("context_parallel_size", self.context),
            ("expert_model_parallel_size", self.expert),
            ("tensor_model_parallel_size", self.tensor),
        )


@dataclass(frozen=True)
class Answer:
    """What came of a step.

    Attributes:
        loss: sum and number of counted tokens of each micro-batch, over the sequence's ranks.
        ahead: MTP's losses, as they are logged.
        gradients: what the rank holds of them.
        biases: of the routers, after the step.
        logits: of the first micro-batch, in the order of the sequence.
    """

    loss: torch.Tensor
    ahead: torch.Tensor
    gradients: list[Part]
    biases: dict[str, torch.Tensor]
    logits: torch.Tensor


def whole(rank: int, cases: dict[str, Case]) -> dict[str, tuple[Answer, Weights]]:
    """For `gloo_ranks.run_ranks`, on one rank: the answer of every case undivided, and the weights
    that it was given by."""
    plain = {"context": 1, "expert": 1, "tensor": 1}
    alone = {
        name: replace(case, **plain, config=case.config | {"sequence_parallel": False})
        for name, case in cases.items()
    }
    weights: dict[str, Weights] = {name: {} for name in cases}
    answers = _answers(alone, weights)
    return {name: (answers[name], weights[name]) for name in cases}


def divided(rank: int, cases: dict[str, Case], weights: Path) -> dict[str, Answer]:
    """For `gloo_ranks.run_ranks`: every case on this rank, its weights from a file."""
    return _answers(cases, torch.load(weights))


def _answers(cases: dict[str, Case], weights: dict[str, Weights]) -> dict[str, Answer]:
    from megatron.core import parallel_state

    logging.disable(logging.INFO)  # upstream lists every bucket of gradients
    dsv3_plugin.register()
    answers = {}
    for sizes in {case.sizes: None for case in cases.values()}:
        # Once for all of these: groups have threads, which stay.
        parallel_state.initialize_model_parallel(
            **dict(sizes), expert_tensor_parallel_size=1, create_gloo_process_groups=False
        )
        for name, case in cases.items():
            if case.sizes == sizes:
                with own_run.training():
                    answers[name] = _step(case, weights[name])
        parallel_state.destroy_model_parallel()
    return answers


def _step(case: Case, weights: Weights) -> Answer:
    """A step with these weights; where there are none yet, they are drawn here."""
    from megatron.core import parallel_state
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.pipeline_parallel.schedules import forward_backward_no_pipelining
    from megatron.core.tensor_parallel import (
        gather_from_tensor_model_parallel_region,
        model_parallel_cuda_manual_seed,
    )
    from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker
    from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper

    from dsv3_plugin.model.build import build_model

    MTPLossLoggingHelper.tracker.clear()
    get_moe_metrics_tracker().metrics.clear()
    model_parallel_cuda_manual_seed(0, force_reset_rng=True)
    features = {
        "mtp_num_layers": 1,
        "moe_aux_loss_coeff": 0.1,
        "moe_router_load_balancing_type": "seq_aux_loss",
    }
    built = build_model(
        oracles.model_config(**features | case.model),
        dtype=case.dtype,
        **dict(case.sizes)
        | {"expert_tensor_parallel_size": 1, "moe_router_bias_update_rate": 1e-3},
        **{"calculate_per_token_loss": bool(case.padded)} | case.config,
    ).train()
    if not weights:
        oracles.randomize(built, seed=5)
        weights |= whole_tensors.whole(whole_tensors.parts([built]))
    _take(built, weights)
    built.config.finalize_model_grads_func = _finish
    wrapped = DistributedDataParallel(built.config, DistributedDataParallelConfig(), built)
    wrapped.zero_grad_buffer()
    reports = forward_backward_no_pipelining(
        forward_step_func=partial(_forward_step, case),
        data_iterator=_batches(case),
        model=wrapped,
        num_microbatches=MICRO_BATCHES,
        seq_length=LENGTH,
        micro_batch_size=BATCH,
    )
    group = parallel_state.get_context_parallel_group()
    loss = torch.stack([report["lm loss"] for report in reports])
    dist.all_reduce(loss, group=group)
    MTPLossLoggingHelper.reduce_metrics_in_tracker()
    built.eval()
    with torch.no_grad():
        batch = next(_batches(case))
        logits = built(batch["tokens"], batch["positions"], None, packed_seq_params=batch["packed"])
        logits = gather_from_tensor_model_parallel_region(logits)
    return Answer(
        loss,
        MTPLossLoggingHelper.tracker["loss_values"].clone(),
        _gradients(built),
        {name: data.clone() for name, data in built.named_buffers() if "expert_bias" in name},
        _in_order(logits.transpose(0, 1), case, group).transpose(0, 1),
    )


@torch.no_grad()
def _take(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Fill a model, or a part of one, with weights by their keys in a checkpoint."""
    for tensor in distributed_tensors(model):
        tensor.data.copy_(part_of(weights, tensor.key, tensor.global_offset, tensor.data.shape))


def part_of(
    tensors: dict[str, torch.Tensor], key: str, offset: tuple[int, ...], shape: tuple[int, ...]
) -> torch.Tensor:
    """The box of that shape that begins there; axes of a stack, which the shape lacks, are gone."""
    stacked = (1,) * (len(offset) - len(shape)) + tuple(shape)
    box = tuple(slice(o, o + n) for o, n in zip(offset, stacked, strict=True))
    return tensors[key][box].view(shape)


def _gradients(model: torch.nn.Module) -> list[Part]:
    """Of every parameter; the model is of no use afterwards."""
    for parameter in model.parameters():
        parameter.data = parameter.main_grad
    return [part for part in whole_tensors.parts([model]) if "expert_bias" not in part[0]]


def _forward_step(case: Case, iterator: Iterator[Any], model: torch.nn.Module) -> Any:
    from dsv3_plugin.stages.pretrain import next_token_loss

    batch = next(iterator)
    losses = model(
        batch["tokens"],
        batch["positions"],
        None,
        labels=batch["labels"],
        loss_mask=batch["mask"],
        packed_seq_params=batch["packed"],
        padding_mask=batch["padding"],
    )
    return losses, partial(next_token_loss, batch["mask"], share=batch["share"])


def _batches(case: Case) -> Iterator[dict[str, Any]]:
    """This rank's part of each micro-batch."""
    from megatron.core import parallel_state

    group = parallel_state.get_context_parallel_group()
    for number in range(MICRO_BATCHES):
        draw = torch.Generator().manual_seed(number)
        rows = 1 if case.samples else BATCH
        drawn = torch.randint(96, (rows, sum(case.lengths) + 1), generator=draw)
        mask = torch.ones(rows, sum(case.lengths))
        mask[:, : case.masked] = 0
        start = 0
        for tokens, padding in case.samples:
            mask[:, start + tokens - 1 : start + tokens + padding] = 0
            start += tokens + padding
        padding = torch.zeros(rows, sum(case.lengths), dtype=torch.bool)
        for row, places in enumerate(case.padded):
            padding[row, LENGTH - places :] = True
            mask[row, LENGTH - places - 1 :] = 0
        everything = {
            "tokens": drawn[:, :-1],
            "labels": drawn[:, 1:],
            "mask": mask,
            "padding": padding,
            "positions": torch.cat([torch.arange(n) for n in case.lengths]).expand(rows, -1),
        }
        part, share = everything, None
        if group.size() > 1:
            zigzag = Zigzag(group.rank(), group.size(), case.lengths)
            part = {name: taken(value, zigzag.rows(), dim=1) for name, value in everything.items()}
            if not case.padded:
                share = part["mask"].sum() / (mask.sum() / group.size())
        part = {name: value.contiguous() for name, value in part.items()}
        if not case.padded:
            part["padding"] = None
        yield part | {"share": share, "packed": _packed(case) if case.samples else None}


def _packed(case: Case) -> Any:
    from megatron.core.packed_seq_params import PackedSeqParams

    ends = torch.tensor([0, *(tokens for tokens, _ in case.samples)], dtype=torch.int32).cumsum(0)
    padded = torch.tensor([0, *case.lengths], dtype=torch.int32).cumsum(0)
    longest = max(case.lengths)
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=ends.int(),
        cu_seqlens_kv=ends.int(),
        cu_seqlens_q_padded=padded.int(),
        cu_seqlens_kv_padded=padded.int(),
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )


def _in_order(mine: torch.Tensor, case: Case, group: Any) -> torch.Tensor:
    """[s, …] of each rank's part, and over tensor-parallel ranks as it is."""
    if group.size() == 1:
        return mine
    parts = [torch.empty_like(mine) for _ in range(group.size())]
    dist.all_gather(parts, mine.contiguous(), group=group)
    return taken(torch.cat(parts), Zigzag(group.rank(), group.size(), case.lengths).in_order)


def _finish(model: Any, *args: Any, **kwargs: Any) -> None:
    from megatron.core.distributed import finalize_model_grads

    finalize_model_grads(model if isinstance(model, list) else [model], *args, **kwargs)
