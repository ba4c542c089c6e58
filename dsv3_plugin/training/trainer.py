"""The trainer: upstream's `megatron.training.pretrain`, driven by a recipe and a stage.

What is ours is small: the arguments come from the recipe, what is trained on and towards from the
stage, and whatever runs beside a step is a hook.
"""

import contextlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from megatron.core.enums import ModelType
from megatron.training import get_args
from megatron.training import pretrain as upstream_pretrain
from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args
from megatron.training.config import PretrainConfigContainer
from megatron.training.models.gpt import GPTModelConfig

from dsv3_plugin.checkpoint.restricted import restricted_reading
from dsv3_plugin.data.batch import stage_inputs
from dsv3_plugin.dispatch.moe_layer import configure_dispatch
from dsv3_plugin.model import SPEC
from dsv3_plugin.model.config import adjust_config
from dsv3_plugin.pipeline.chunks import PlacedLayout, PlacedModelConfig, place
from dsv3_plugin.pipeline.executor import Executor, rows_joined
from dsv3_plugin.pipeline.shared_schedules import searched_on_rank_zero
from dsv3_plugin.planner.recipe_schedules import schedules_on, searches
from dsv3_plugin.recipe.arguments import megatron_arguments
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.training.initial_weights import draw_weights
from dsv3_plugin.training.metrics import observe_tensorboard
from dsv3_plugin.training.patches import TABLE
from dsv3_plugin.training.run import Run
from dsv3_plugin.training.stage import Stage
from dsv3_plugin.training.upstream_arguments import parse, refusals_as_sentences
from dsv3_plugin.upstream import patching


@dataclass(frozen=True)
class Configured:
    """All of upstream's settings for a run, finished.

    Attributes:
        model: of the chunks, and how they are built.
        container: of everything else.
        layout: where stages lie; None where upstream runs a schedule of its own.
    """

    model: GPTModelConfig
    container: PretrainConfigContainer
    layout: PlacedLayout | None


def train(run: Run, stage: Stage) -> None:
    """Train the run's recipe from its newest checkpoint, or from the beginning, to its end.

    Raises:
        UserError: for whatever the user can mend.
    """
    patching.apply(TABLE)
    with restricted_reading():  # the arguments' own checkpoint too, which parsing may open
        train_configured(run, stage, configured(run, run.folder.arguments))


def configured(run: Run, told_in: Path | None = None) -> Configured:
    """Give upstream the run's arguments, and finish the configuration that it makes of them.

    Args:
        run: the run.
        told_in: see `parse`.

    Raises:
        UserError: upstream refuses them.
    """
    parse(megatron_arguments(run.recipe, run.machine, SPEC), told_in)
    args = get_args()
    layout = placed_layout(run.recipe)
    config_class = PlacedModelConfig if layout else GPTModelConfig
    with refusals_as_sentences():
        model = gpt_config_from_args(args, model_config_cls=config_class)
    adjust_config(model.transformer, run.recipe.model)
    in_fp8 = run.recipe.precision.swiglu_input == "fp8"
    model.transformer.activation_func_fp8_input_store = in_fp8  # it has no flag
    # Upstream drains the device after each batch of messages, against a fault of older torch.
    model.transformer.batch_p2p_sync = False  # it has no flag
    model.pre_wrap_hooks.append(partial(draw_weights, seed=run.recipe.training.seed))
    dispatch = run.recipe.dispatch
    configure_dispatch(
        model.transformer,
        dispatch.kind,
        dispatch.ranks_per_node,
        dispatch.precision,
        run.recipe.hides_shared_expert,
    )
    if layout is not None:
        place(model, layout)
        chunks = model.transformer.virtual_pipeline_model_parallel_size
        args.virtual_pipeline_model_parallel_size = chunks
    container = pretrain_cfg_container_from_args(args, model)
    # The hook that takes a weight gradient in must run when it is there.
    container.ddp.delay_wgrad_compute = model.transformer.delay_wgrad_compute
    return Configured(model, container, layout)


def train_configured(run: Run, stage: Stage, settings: Configured) -> None:
    """Train with settings that are finished."""
    layout = settings.layout
    observe_tensorboard(run.folder.steps_saved())
    run.hooks = stage.hooks
    if stage.freeze is not None:
        settings.model.pre_wrap_hooks.append(stage.freeze)
    with contextlib.ExitStack() as stack:
        stack.enter_context(run.in_charge())
        stack.enter_context(stage.beside)
        if stage.packs:
            stack.enter_context(rows_joined())
        if layout is not None:
            stack.enter_context(executor_of(run).in_use())
        upstream_pretrain(
            settings.container,
            stage.datasets(layout.inputs if layout else stage_inputs),
            ModelType.encoder_or_decoder,
            stage.forward_step,
            get_embedding_ranks=embedding_ranks if layout and layout.placement.ends_meet else None,
        )


def placed_layout(recipe: Recipe) -> PlacedLayout | None:
    """Where the stages lie for the recipe's schedule; None where upstream runs one of its own."""
    if recipe.parallel.pipeline == 1 or recipe.executor == "upstream":
        return None
    return PlacedLayout(recipe.stage_layout, recipe.placement(recipe.pipeline.schedule))


def executor_of(run: Run) -> Executor:
    """What runs the schedules of the run's recipe."""
    recipe = run.recipe
    schedules = schedules_on(recipe, run.machine)
    if searches(recipe):
        schedules = searched_on_rank_zero(schedules, recipe.parallel.timeout_minutes)
    return Executor(schedules)


def embedding_ranks(pipeline: list[int]) -> list[int]:
    """The one rank that has the embedding, where the first and the last stage share it."""
    return [pipeline[0]]
