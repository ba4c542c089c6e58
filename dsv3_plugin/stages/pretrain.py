"""Pretraining: documents laid end to end, the next token, and DeepSeek-V3's curves.

Sequences are cut from a stream of documents in a seeded order, attention crosses from one document
to the next, and every token counts in the loss (arXiv 2412.19437, section 4.1).
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.utils import get_attr_wrapped_model

from dsv3_plugin.data.batch import Sample, StageInputs, get_batch
from dsv3_plugin.data.datasets import datasets_provider
from dsv3_plugin.data.whole import WholePacking
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.training.curves import CurveValues
from dsv3_plugin.training.expert_load import ExpertLoad
from dsv3_plugin.training.hooks import Hook
from dsv3_plugin.training.metrics import Metrics
from dsv3_plugin.training.prepare import prepare
from dsv3_plugin.training.run import Run
from dsv3_plugin.training.saving import Saving
from dsv3_plugin.training.stage import Stage
from dsv3_plugin.training.throughput import Throughput


def pretrain(run: Run) -> Stage:
    """Pretraining, for one run."""
    recipe = run.recipe
    return Stage(
        prepare=partial(prepare, run),
        datasets=partial(
            datasets_provider, held_out_sets=recipe.held_out_prefixes, whole=whole_packing(recipe)
        ),
        forward_step=partial(forward_step, padded=recipe.data.packing == "whole"),
        hooks=hooks(run),
    )


def hooks(run: Run) -> list[Hook]:
    """What runs beside every step of a training by upstream's loop."""
    recipe = run.recipe
    return [
        Throughput(recipe.data.seq_length),
        CurveValues(recipe.curves),
        ExpertLoad(),
        Saving(run.folder.checkpoints, recipe.checkpoint.keep),
        Metrics(recipe, run.folder),
    ]


def whole_packing(recipe: Recipe) -> WholePacking | None:
    """How the recipe's documents stay whole; None: they are a stream."""
    data = recipe.data
    if data.packing == "stream":
        return None
    return WholePacking(data.least_of_long, data.long_document_share)


def chunk_inputs(model: torch.nn.Module) -> StageInputs:
    """What a model chunk reads of a batch: tokens to embed, labels for a loss."""
    ahead = get_attr_wrapped_model(model, "mtp_process")
    return StageInputs(
        tokens=get_attr_wrapped_model(model, "pre_process") or ahead,
        labels=get_attr_wrapped_model(model, "post_process") or ahead,
    )


def forward_step(
    samples: Iterator[Sample] | None,
    model: torch.nn.Module,
    return_schedule_plan: bool = False,
    *,
    padded: bool = False,
) -> tuple[Any, Any]:
    """One forward pass of a model chunk, in the form upstream's schedules call it.

    Args:
        samples: where the batch is from; None on ranks that read none.
        model: the chunk.
        return_schedule_plan: do not compute: upstream's schedule with overlapped experts runs a
            plan of the pass, layer by layer beside the backward of another.
        padded: whether sequences have padding, which routers of every chunk are told.

    Returns:
        The chunk's output or plan, and the function that makes a loss of it on the last stage.
    """
    batch = get_batch(samples, chunk_inputs(model), padded=padded)
    forward = model.build_schedule_plan if return_schedule_plan else model
    output = forward(
        batch.tokens,
        batch.position_ids,
        batch.attention_mask,
        labels=batch.labels,
        loss_mask=batch.loss_mask,
        packed_seq_params=batch.boundaries,
        padding_mask=_of_layers(batch.padding_mask, model),
    )
    return output, partial(next_token_loss, batch.loss_mask, share=batch.loss_share)


def _of_layers(padding_mask: torch.Tensor | None, model: torch.nn.Module) -> torch.Tensor | None:
    """The mask of what a chunk's layers see: with sequence parallelism, a rank's part.

    Upstream takes the part of the chunk that embeds, and leaves the others the whole.
    """
    if padding_mask is None or get_attr_wrapped_model(model, "pre_process"):
        return padding_mask
    config = get_attr_wrapped_model(model, "config")
    if not config.sequence_parallel:
        return padding_mask
    tensor = parallel_state.get_tensor_model_parallel_rank()
    return padding_mask.chunk(config.tensor_model_parallel_size, dim=1)[tensor].contiguous()


def next_token_loss(
    loss_mask: torch.Tensor, losses: torch.Tensor, share: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """The summed loss of a micro-batch.

    Args:
        loss_mask: `[b, s]`, 1 where a token counts.
        losses: `[b, s]`, cross-entropy of each token in nats.
        share: `[]`, of a sequence that several ranks share: this rank's counted tokens over their
            mean. Upstream divides each rank's sum by its own number and takes the mean over ranks;
            weighed so, that is the mean over tokens.

    Returns:
        The sum over counted tokens, their number, and both for the log.
    """
    mask = loss_mask.view(-1).float()
    total = (losses.view(-1).float() * mask).sum()
    tokens = mask.sum().int()
    report = torch.stack([total.detach(), tokens.float()])
    return total if share is None else total * share, tokens, {"lm loss": report}
