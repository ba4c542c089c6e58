"""Pretraining: upstream's `megatron.training.pretrain`, driven by a recipe.

What is ours is small: the arguments come from the recipe, and the patches add curves and metrics.
"""

import contextlib
import io
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from megatron.core.enums import ModelType
from megatron.core.utils import get_attr_wrapped_model
from megatron.training import get_args
from megatron.training import pretrain as upstream_pretrain
from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args
from megatron.training.arguments import parse_and_validate_args, parse_args, validate_args
from megatron.training.models.gpt import GPTModelConfig

from dsv3_plugin.data.batch import Batch, StageInputs, get_batch, stage_inputs
from dsv3_plugin.data.datasets import datasets_provider
from dsv3_plugin.dispatch.moe_layer import configure_dispatch
from dsv3_plugin.errors import UserError
from dsv3_plugin.model.config import adjust_config
from dsv3_plugin.pipeline.chunks import PlacedLayout, PlacedModelConfig, place
from dsv3_plugin.pipeline.executor import Executor
from dsv3_plugin.pipeline.from_recipe import schedules_of, searches
from dsv3_plugin.pipeline.shared_schedules import searched_on_rank_zero
from dsv3_plugin.recipe.arguments import layout_of, megatron_arguments
from dsv3_plugin.recipe.placing import placement
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.training import metrics
from dsv3_plugin.training.checkpoint_folder import steps_saved
from dsv3_plugin.training.run import Run
from dsv3_plugin.upstream import patches


def pretrain(run: Run) -> None:
    """Train the run's recipe from its newest checkpoint, or from the beginning, to its end.

    Raises:
        UserError: for whatever the user can mend.
    """
    patches.register()
    parse_arguments(megatron_arguments(run.recipe, has_gpu=torch.cuda.is_available()))
    args = get_args()
    layout = placed_layout(run.recipe)
    config_class = PlacedModelConfig if layout else GPTModelConfig
    model = gpt_config_from_args(args, model_config_cls=config_class)
    adjust_config(model.transformer, run.recipe.model)
    configure_dispatch(model.transformer, **run.recipe.dispatch.model_dump())
    if layout is not None:
        place(model, layout)
        chunks = model.transformer.virtual_pipeline_model_parallel_size
        args.virtual_pipeline_model_parallel_size = chunks
    container = pretrain_cfg_container_from_args(args, model)
    # The hook that takes a weight gradient in must run when it is there.
    container.ddp.delay_wgrad_compute = model.transformer.delay_wgrad_compute
    metrics.observe_tensorboard(steps_saved(run.recipe.checkpoint_folder))
    with contextlib.ExitStack() as stack:
        if layout is not None:
            stack.enter_context(executor_of(run.recipe).in_use())
        upstream_pretrain(
            container,
            datasets_provider(layout.inputs if layout else stage_inputs),
            ModelType.encoder_or_decoder,
            forward_step,
            get_embedding_ranks=embedding_ranks if layout and layout.placement.ends_meet else None,
        )


def placed_layout(recipe: Recipe) -> PlacedLayout | None:
    """Where the stages lie for the recipe's schedule; None where upstream runs one of its own."""
    if recipe.parallel.pipeline == 1 or recipe.executor == "upstream":
        return None
    return PlacedLayout(layout_of(recipe), placement(recipe, recipe.pipeline.schedule))


def executor_of(recipe: Recipe) -> Executor:
    """What runs the recipe's schedules."""
    schedules = schedules_of(recipe)
    wanted = recipe.pipeline
    if searches(recipe):
        schedules = searched_on_rank_zero(schedules, recipe.folder, recipe.parallel.timeout_minutes)
    return Executor(schedules, wanted.timeout or 60 * recipe.parallel.timeout_minutes)


def embedding_ranks(pipeline: list[int]) -> list[int]:
    """The one rank that has the embedding, where the first and the last stage share it."""
    return [pipeline[0]]


def check_arguments(recipe: Recipe) -> None:
    """Let upstream look at the recipe's command line and its model, and keep nothing of it.

    Raises:
        UserError: upstream's own validation refuses it.
    """
    patches.register()
    sys.argv = ["dsv3", *megatron_arguments(recipe, has_gpu=torch.cuda.is_available())]
    with _refusals():
        args = parse_args()
        validate_args(args)
        gpt_config_from_args(args)


def parse_arguments(arguments: list[str]) -> None:
    """Give upstream its command line.

    Raises:
        UserError: upstream's own validation refuses it.
    """
    sys.argv = ["dsv3", *arguments]
    with _refusals():
        parse_and_validate_args()


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """What upstream's parser and validation raise becomes a sentence."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            yield
    except SystemExit as end:  # argparse, on an unknown flag or a wrong value in megatron_args
        sentence = complaint.getvalue().strip().split("\n")[-1].partition("error: ")[2]
        raise UserError(f"Megatron refuses these settings: {sentence}.") from end
    except (AssertionError, ValueError) as error:
        raise UserError(f"Megatron refuses these settings: {error}.") from error


def chunk_inputs(model: torch.nn.Module) -> StageInputs:
    """What a model chunk reads of a batch: tokens to embed, labels for a loss."""
    ahead = get_attr_wrapped_model(model, "mtp_process")
    return StageInputs(
        tokens=get_attr_wrapped_model(model, "pre_process") or ahead,
        labels=get_attr_wrapped_model(model, "post_process") or ahead,
    )


def forward_step(
    data_iterator: Iterator[Batch] | None, model: torch.nn.Module
) -> tuple[torch.Tensor, Any]:
    """One forward pass of a model chunk, in the form upstream's schedules call it.

    Returns:
        The chunk's output, and the function that makes a loss of it on the last stage.
    """
    batch = get_batch(data_iterator, chunk_inputs(model))
    output = model(
        batch["tokens"],
        batch["position_ids"],
        batch["attention_mask"],
        labels=batch["labels"],
        loss_mask=batch["loss_mask"],
    )
    return output, partial(next_token_loss, batch["loss_mask"])


def next_token_loss(
    loss_mask: torch.Tensor, losses: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """The summed loss of a micro-batch.

    Args:
        loss_mask: `[b, s]`, 1 where a token counts.
        losses: `[b, s]`, cross-entropy of each token in nats.

    Returns:
        The sum over counted tokens, their number, and both for the log.
    """
    mask = loss_mask.view(-1).float()
    total = (losses.view(-1).float() * mask).sum()
    tokens = mask.sum().int()
    report = torch.stack([total.detach(), tokens.float()])
    return total, tokens, {"lm loss": report}
