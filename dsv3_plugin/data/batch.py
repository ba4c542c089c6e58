"""Micro-batches: what a part of the model reads of them, and reading one.

Which parts read is decided by where they stand in the pipeline. `stage_inputs` answers for the
placements of upstream; a schedule that places chunks otherwise passes its own answer.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from megatron.core import parallel_state
from megatron.core.transformer.multi_token_prediction import mtp_on_this_rank
from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout
from megatron.core.utils import get_batch_on_this_cp_rank, get_batch_on_this_tp_rank
from megatron.training import get_args

Batch = dict[str, torch.Tensor | None]

BATCH_KEYS = ("tokens", "labels", "loss_mask", "position_ids", "attention_mask")


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


def get_batch(data_iterator: Iterator[Batch] | None, inputs: StageInputs) -> Batch:
    """The next micro-batch, on this process's device, as far as the stage reads it.

    Tensor-parallel rank 0 reads and the others receive from it; with context parallelism every
    rank keeps its own slice of the sequence. A stage that reads nothing leaves the iterator alone.

    Args:
        data_iterator: gives the dataset's samples, collated; None where none is built.
        inputs: what to keep.

    Returns:
        `tokens`, `labels`, `position_ids` (int64) and `loss_mask` (float32), each
        `[b, s / context-parallel size]`, and `attention_mask`: None, for attention that is causal
        by itself, unless upstream's flags ask for masks. What the stage does not read is None.
    """
    if not inputs.any:
        return dict.fromkeys(BATCH_KEYS)
    args = get_args()
    tp_rank = parallel_state.get_tensor_model_parallel_rank()
    batch: Batch = {}
    if tp_rank == 0:
        assert data_iterator is not None, "no dataset was built on a rank that reads batches"
        sample = next(data_iterator)
        for key in BATCH_KEYS:
            value = sample.get(key)
            batch[key] = None if value is None else value.cuda(non_blocking=True)
    batch = get_batch_on_this_tp_rank(
        batch,
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
    batch = get_batch_on_this_cp_rank(
        batch, is_hybrid_cp=False, cp_group=parallel_state.get_context_parallel_group()
    )
    return {key: batch.get(key) for key in BATCH_KEYS}
