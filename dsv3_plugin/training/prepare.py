"""What one rank does for all before training: the data, and a checkpoint folder in order.

Everything that can be refused is looked at before anything is written.
"""

import math
import os
from collections.abc import Callable, Mapping

from dsv3_plugin.data.dataset_folder import find_dataset
from dsv3_plugin.data.run_data import RunData, ensure_data
from dsv3_plugin.dispatch.topology import group_topology, grouping_note, ranks_per_node
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.training.checkpoint_folder import write_description
from dsv3_plugin.training.resume import (
    refuse_another_length,
    refuse_another_model,
    refuse_another_optimizer,
    whole_checkpoint,
)
from dsv3_plugin.training.run import Run


def prepare(run: Run, tell: Callable[[str], None]) -> None:
    """Put the folders of a run in order, and its data in place.

    Args:
        run: the run.
        tell: takes a sentence for the person.

    Raises:
        UserError: for whatever is wrong with the data, the checkpoints or the disk.
    """
    recipe = run.recipe
    dispatch = dispatch_note(recipe, os.environ)
    refuse_another_model(recipe)
    saved = whole_checkpoint(recipe.checkpoint_folder, tell)
    if saved is not None and not saved.release:
        refuse_another_optimizer(recipe)
        refuse_another_length(recipe)
    data = _data(recipe, tell, resuming=saved is not None)
    write_description(recipe, data.tokenizer_dir)
    # A release has weights alone: training begins at step 0 and writes that step's line again.
    resumed = saved is not None and not saved.release
    run.folder.metrics.keep_until(saved.iteration if resumed else -1)
    run.folder.write_recipe(recipe.to_yaml())
    if saved is not None and not saved.release:
        tell(f"Going on from step {saved.iteration:,} of {recipe.total_steps:,}.")
    for note in (dispatch, evaluation_note(recipe, data.valid_tokens)):
        if note is not None:
            tell(note)


def dispatch_note(recipe: Recipe, environment: Mapping[str, str]) -> str | None:
    """What two-hop dispatch cannot save, as the router's groups lie on the nodes; None: nothing.

    The dispatcher knows it too, in whatever rank has experts; that lands in a log.

    Raises:
        UserError: nobody says how many ranks a node has, or expert parallelism does not fit them.
    """
    if recipe.dispatch.kind != "two_hop":
        return None
    model = recipe.model
    per_node = ranks_per_node(recipe.dispatch.ranks_per_node, environment)
    topology = group_topology(range(recipe.parallel.expert), per_node, model.num_moe_experts)
    note = grouping_note(topology, model.moe_router_num_groups, model.moe_router_group_topk)
    return note and f"Dispatch: {note}."


def evaluation_note(recipe: Recipe, held_out_tokens: int) -> str | None:
    """How often the held-out part is read, where it is read more than once; None: it suffices."""
    training, steps = recipe.training, recipe.total_steps
    if training.eval_interval is None:
        return None
    there = (held_out_tokens - 1) // recipe.data.seq_length
    evaluations = 1 + math.ceil(steps / training.eval_interval)  # the first before any step
    read = evaluations * training.eval_steps * recipe.batch_schedule.batch(0)
    if read <= there:
        return None
    return (
        f"The held-out part has {there:,} sequences and {evaluations:,} evaluations read {read:,}: "
        f"it is repeated."
    )


def _data(recipe: Recipe, tell: Callable[[str], None], *, resuming: bool) -> RunData:
    if find_dataset(recipe.data_folder) is None:
        tell(f"Building the dataset in {recipe.data_folder} (once).")
    return ensure_data(
        recipe.data,
        recipe.data_folder,
        recipe.model,
        seed=recipe.training.seed,
        resuming=resuming,
        tell=tell,
    )
