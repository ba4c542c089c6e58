"""One step of a small model, its sequences whole and divided over context-parallel ranks.

What ranks of tests/model/test_latent_context.py run, each case with the same weights and batches
twice: with every sequence on each rank, and with its part of them. The step is upstream's, with its
scales of losses and its reduction of gradients; the loss is the product's.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

import dsv3_plugin
from dsv3_plugin.distributed.zigzag import Zigzag, taken
from tests import oracles

LENGTH, BATCH, MICRO_BATCHES = 48, 2, 2


@dataclass(frozen=True)
class Case:
    """What a step is made of.

    Attributes:
        model: changes of the small model.
        config: fields of MLATransformerConfig.
        context, expert, tensor: degrees of parallelism.
        samples: tokens of each sample of a pack and of the padding behind it; none: no packs.
        masked: the first tokens of each sequence that do not count in the loss.
        dtype: of the weights.
    """

    model: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    context: int = 2
    expert: int = 1
    tensor: int = 1
    samples: tuple[tuple[int, int], ...] = ()
    masked: int = 0
    dtype: torch.dtype = torch.float32

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sample with its padding."""
        return tuple(map(sum, self.samples)) or (LENGTH,)


@dataclass(frozen=True)
class Answer:
    """What came of a step.

    Attributes:
        loss: sum and number of counted tokens of each micro-batch, over the sequence's ranks.
        ahead: MTP's losses, as they are logged.
        gradients: of every parameter; biases: of the routers, after the step.
        logits: of the first micro-batch, in the order of the sequence.
    """

    loss: torch.Tensor
    ahead: torch.Tensor
    gradients: dict[str, torch.Tensor]
    biases: dict[str, torch.Tensor]
    logits: torch.Tensor


def whole_and_divided(rank: int, cases: dict[str, Case]) -> dict[str, tuple[Answer, Answer]]:
    """For `gloo_ranks.run_ranks`: every case on this rank."""
    logging.disable(logging.INFO)  # upstream lists every bucket of gradients
    dsv3_plugin.register()
    answers = {}
    for name, case in cases.items():
        weights: dict[str, Any] = {}
        whole = _step(case, 1, weights)
        answers[name] = whole, _step(case, case.context, weights)
    return answers


def _step(case: Case, context: int, weights: dict[str, Any]) -> Answer:
    """A step with these weights; where there are none yet, they are drawn here."""
    from megatron.core import parallel_state
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.pipeline_parallel.schedules import forward_backward_no_pipelining
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
    from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker
    from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper

    from dsv3_plugin.model.build import build_model

    MTPLossLoggingHelper.tracker.clear()
    get_moe_metrics_tracker().metrics.clear()
    sizes = {
        "context_parallel_size": context,
        "expert_model_parallel_size": case.expert,
        "tensor_model_parallel_size": case.tensor,
    }
    parallel_state.initialize_model_parallel(**sizes, expert_tensor_parallel_size=1)
    model_parallel_cuda_manual_seed(0, force_reset_rng=True)
    features = {
        "mtp_num_layers": 1,
        "moe_aux_loss_coeff": 0.1,
        "moe_router_load_balancing_type": "seq_aux_loss",
    }
    built = build_model(
        oracles.model_config(**features | case.model),
        dtype=case.dtype,
        **sizes | {"expert_tensor_parallel_size": 1, "moe_router_bias_update_rate": 1e-3},
        **case.config,
    ).train()
    if not weights:
        oracles.randomize(built, seed=5)  # alike on all ranks, also where they hold other experts
        state = built.state_dict().items()
        weights |= {name: value.clone() for name, value in state if value is not None}
    built.load_state_dict(weights)
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
    answer = Answer(
        loss,
        MTPLossLoggingHelper.tracker["loss_values"].clone(),
        {name: weight.main_grad.clone() for name, weight in built.named_parameters()},
        {name: data.clone() for name, data in built.named_buffers() if "expert_bias" in name},
        _in_order(logits.transpose(0, 1), case, group).transpose(0, 1),
    )
    parallel_state.destroy_model_parallel()
    return answer


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
        whole = {
            "tokens": drawn[:, :-1],
            "labels": drawn[:, 1:],
            "mask": mask,
            "positions": torch.cat([torch.arange(n) for n in case.lengths]).expand(rows, -1),
        }
        part, share = whole, None
        if group.size() > 1:
            zigzag = Zigzag(group.rank(), group.size(), case.lengths)
            part = {name: taken(value, zigzag.rows(), dim=1) for name, value in whole.items()}
            share = part["mask"].sum() / (mask.sum() / group.size())
        part = {name: value.contiguous() for name, value in part.items()}
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
