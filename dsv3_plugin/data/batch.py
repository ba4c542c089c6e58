"""Micro-batches: what a part of the model reads of them, and reading one.

Which parts read is decided by where they stand in the pipeline. `stage_inputs` answers for the
placements of upstream; a schedule that places chunks otherwise passes its own answer.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.multi_token_prediction import mtp_on_this_rank
from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout
from megatron.core.utils import get_batch_on_this_cp_rank, get_batch_on_this_tp_rank
from megatron.training import get_args

from dsv3_plugin.distributed.packs import packs_of, samples_of
from dsv3_plugin.distributed.zigzag import Zigzag, taken

Sample = dict[str, torch.Tensor | None]
"""What a dataset gives, collated: tensors by the names of a batch."""

SAMPLE_KEYS = ("tokens", "labels", "loss_mask", "position_ids", "attention_mask")


@dataclass(frozen=True)
class Batch:
    """A micro-batch on this process's device, as far as its stage reads it; None: it does not.

    Attributes:
        tokens, labels, position_ids: int64 `[b, s / context-parallel size]`.
        loss_mask: float32, of the same shape; 1 where a token counts in the loss.
        attention_mask: None for attention that is causal by itself.
        boundaries: where the samples of a pack begin and end, which do not see each other; None
            where a row is one sequence.
        padding_mask: bool, of the shape of tokens; True where a place is filled up. None where
            nothing is.
        loss_share: float32 `[]`, counted tokens of this rank over the mean of the context-parallel
            ranks that share the sequence; None where the sequence is whole, or its loss is summed
            (`calculate_per_token_loss`).
    """

    tokens: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    loss_mask: torch.Tensor | None = None
    position_ids: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None
    boundaries: PackedSeqParams | None = None
    padding_mask: torch.Tensor | None = None
    loss_share: torch.Tensor | None = None


class StageInputs(NamedTuple):
    """What a pipeline stage reads of a batch.

    Attributes:
        tokens: `tokens` and `position_ids`, for the embedding.
        labels: `labels` and `loss_mask`, for the loss.
    """

    tokens: bool
    labels: bool

    @property
    def any(self) -> bool:
        """Whether the stage reads batches at all."""
        return self.tokens or self.labels


InputsOfStage = Callable[[int | None], StageInputs]


def stage_inputs(vp_stage: int | None = None) -> StageInputs:
    """What this rank's (virtual) stage reads under upstream's placements.

    The first stage embeds tokens and the last one computes the loss; a stage with multi-token
    prediction does both, wherever a layout puts it.
    """
    args = get_args()
    ignore_virtual = vp_stage is None
    layout = args.pipeline_model_parallel_layout
    if isinstance(layout, str):
        layout = PipelineParallelLayerLayout.from_str(layout, args.pipeline_model_parallel_size)
    predicts_ahead = mtp_on_this_rank(
        layout, args.mtp_num_layers, ignore_virtual=ignore_virtual, vp_stage=vp_stage
    )
    stage = {"ignore_virtual": ignore_virtual, "vp_stage": vp_stage}
    return StageInputs(
        tokens=predicts_ahead or parallel_state.is_pipeline_first_stage(**stage),
        labels=predicts_ahead or parallel_state.is_pipeline_last_stage(**stage),
    )


def get_batch(
    samples: Iterator[Sample] | None, inputs: StageInputs, *, padded: bool = False
) -> Batch:
    """The next micro-batch, on this process's device, as far as the stage reads it.

    Tensor-parallel rank 0 reads and the others receive from it; with context parallelism every
    rank keeps its own slice of the sequence. A stage that reads nothing leaves the iterator alone.

    Args:
        samples: the dataset's, collated; None where none is built.
        inputs: what to keep.
        padded: whether there is padding, which every stage reads, for the routers of its layers.
    """
    if not (inputs.any or padded):
        return Batch()
    args = get_args()
    tp_rank = parallel_state.get_tensor_model_parallel_rank()
    sample: Sample = {}
    read: Sample = {}
    if tp_rank == 0:
        assert samples is not None, "no dataset was built on a rank that reads batches"
        read = next(samples)
        for key in SAMPLE_KEYS:
            value = read.get(key)
            sample[key] = None if value is None else value.cuda(non_blocking=True)
    if inputs.any:
        sample = get_batch_on_this_tp_rank(
            sample,
            has_cu_seqlens=False,
            is_hybrid_cp=False,
            create_attention_mask_in_dataloader=args.create_attention_mask_in_dataloader,
            broadcast_src_rank=parallel_state.get_tensor_model_parallel_src_rank(),
            broadcast_group=parallel_state.get_tensor_model_parallel_group(),
            cp_size=args.context_parallel_size,
            tp_rank=tp_rank,
            micro_batch_size=args.micro_batch_size,
            seq_length=args.seq_length,
            # Upstream asks where the stage stands; what it does with the answer is choose tensors.
            mtp_on_this_rank=inputs.tokens and inputs.labels,
            pipeline_model_parallel_size=args.pipeline_model_parallel_size,
            is_pipeline_first_stage=inputs.tokens,
            is_pipeline_last_stage=inputs.labels,
        )
    else:
        sample = {}
    if padded:
        sample["padding_mask"] = _padding_mask(read.get("padding_mask"))
    group = parallel_state.get_context_parallel_group()
    whole = sample.get("loss_mask")
    sample = get_batch_on_this_cp_rank(sample, is_hybrid_cp=False, cp_group=group)
    share = None
    if group.size() > 1 and whole is not None and not args.calculate_per_token_loss:
        mean = whole.sum() / group.size()
        share = sample["loss_mask"].sum() / mean.clamp(min=1 / group.size())
    return Batch(
        **{key: sample.get(key) for key in (*SAMPLE_KEYS, "padding_mask")}, loss_share=share
    )


def get_packs(samples: Iterator[Sample], inputs: StageInputs) -> Batch:
    """The next micro-batch of samples that do not see each other, in one row.

    Every rank reads all of it, whatever its stage keeps: where samples end is known to the host, so
    there is nothing to receive and nothing to wait for.

    Args:
        samples: the dataset's, collated; positions begin anew with each sample. Experts may be told
            that routers do not choose then, `[b, s, MoE layers, top-k]`; sequences are whole there.
        inputs: what to keep beside the boundaries.
    """
    read = next(samples)
    group = parallel_state.get_context_parallel_group()
    ends = (read[key] for key in ("position_ids", "padding_mask", "loss_mask"))
    packs = packs_of(samples_of(*ends, group.rank(), group.size()))
    if read.get("experts") is not None:
        packs.experts = read["experts"].flatten(0, 1).to("cuda", torch.int64, non_blocking=True)
    kept = ("tokens", "position_ids") * inputs.tokens + ("labels", "loss_mask") * inputs.labels
    row = {key: read[key].reshape(1, -1) for key in kept}
    if group.size() > 1:
        mine = Zigzag(group.rank(), group.size(), packs.sample_lengths).rows()
        row = {key: taken(each, mine, dim=1) for key, each in row.items()}
    on_device = {key: each.cuda(non_blocking=True) for key, each in row.items()}
    return Batch(boundaries=packs, **on_device)


def _padding_mask(read: torch.Tensor | None) -> torch.Tensor:
    """What tensor-parallel rank 0 has read, on all of them; upstream hands on nothing like it."""
    args = get_args()
    if read is None:
        shape = (args.micro_batch_size, args.seq_length)
        mask = torch.empty(shape, dtype=torch.uint8, device=torch.cuda.current_device())
    else:
        mask = read.to(torch.uint8).cuda(non_blocking=True)
    if parallel_state.get_tensor_model_parallel_world_size() > 1:
        torch.distributed.broadcast(
            mask,
            parallel_state.get_tensor_model_parallel_src_rank(),
            group=parallel_state.get_tensor_model_parallel_group(),
        )
    return mask.bool()
