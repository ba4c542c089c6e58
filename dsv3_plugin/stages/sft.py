"""Supervised fine-tuning: conversations, and what the assistant says in them.

Conversations are packed into sequences and do not see each other (arXiv 2412.19437, section 5.1):
attention, positions, multi-token prediction and the balance loss begin anew with each, and padding
counts nowhere. The loss is that of the tokens that the assistant has said, per token over the whole
batch, so that a conversation weighs the same whatever it is packed with.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from megatron.core.utils import get_model_config

from dsv3_plugin.data.batch import Batch, InputsOfStage, Sample, get_packs, stage_inputs
from dsv3_plugin.data.chat.datasets import conversations_provider
from dsv3_plugin.data.datasets import Provider
from dsv3_plugin.recipe.sft import Sft
from dsv3_plugin.stages import draft_acceptance
from dsv3_plugin.stages.pretrain import chunk_inputs, hooks, next_token_loss
from dsv3_plugin.training.prepare import prepare
from dsv3_plugin.training.run import Run
from dsv3_plugin.training.stage import Stage


def sft(run: Run) -> Stage:
    """Supervised fine-tuning, for one run."""
    recipe = run.recipe
    return Stage(
        prepare=partial(prepare, run),
        datasets=partial(conversations, recipe),
        forward_step=forward_step,
        hooks=hooks(run),
        packs=True,
        freeze=partial(freeze, recipe),
    )


def conversations(recipe: Sft, inputs: InputsOfStage = stage_inputs) -> Provider:
    """The datasets of a recipe, the same for every stage of the pipeline."""
    return conversations_provider(
        recipe.train_prefixes,
        recipe.file_weights,
        recipe.training.epochs,
        recipe.held_out_parts,
        recipe.held_out_prefixes,
        room=recipe.data.seq_length,
        multiple=recipe.places_multiple,
        seed=recipe.training.seed,
    )


def forward_step(
    samples: Iterator[Sample], model: torch.nn.Module, return_schedule_plan: bool = False
) -> tuple[Any, Any]:
    """One forward pass of a model chunk, in the form upstream's schedules call it.

    Args:
        samples: where the batch is from.
        model: the chunk.
        return_schedule_plan: see `pretrain.forward_step`.

    Returns:
        The chunk's output or plan, and the function that makes a loss of it on the last stage.
    """
    batch = get_packs(samples, chunk_inputs(model))
    forward = model.build_schedule_plan if return_schedule_plan else model
    with draft_acceptance.choices_of(model) as choices:
        output = computed(forward, batch)
    return output, partial(response_loss, batch, choices)


def computed(forward: Callable[..., Any], batch: Batch) -> Any:
    """What a chunk, or what plans its pass, makes of samples that do not see each other."""
    return forward(
        batch.tokens,
        batch.position_ids,
        None,
        labels=batch.labels,
        loss_mask=batch.loss_mask,
        packed_seq_params=batch.boundaries,
    )


def response_loss(
    batch: Batch, choices: list[torch.Tensor], losses: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """The summed loss of a micro-batch, see `pretrain.next_token_loss`.

    Args:
        batch: the micro-batch.
        choices: likeliest tokens in an evaluation, which is told how often drafts are the model's.
        losses: `[b, s]`, cross-entropy of each token in nats.
    """
    total, tokens, report = next_token_loss(batch.loss_mask, losses)
    if choices:
        counts = draft_acceptance.accepted(choices, batch.loss_mask, batch.boundaries)
        report[draft_acceptance.REPORTED] = counts
    return total, tokens, report


def freeze(recipe: Sft, chunks: Sequence[torch.nn.Module]) -> Sequence[torch.nn.Module]:
    """Have what the recipe freezes stay as it is, in place; the chunks are not wrapped yet."""
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            of_mtp, of_router = name.startswith("mtp."), ".router." in name
            if (of_mtp and recipe.mtp == "freeze") or (of_router and recipe.router == "freeze"):
                parameter.requires_grad = False
        if recipe.router == "freeze":
            get_model_config(chunk).moe_aux_loss_coeff = 0.0
    return chunks
