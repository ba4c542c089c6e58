"""What one rank does for all before training: the data, and a checkpoint folder in order.

Everything that can be refused is looked at before anything is written.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from dsv3_plugin.checkpoint import trained_on
from dsv3_plugin.checkpoint.tracker import Saved
from dsv3_plugin.checkpoint.trained_on import TOKENIZER
from dsv3_plugin.data.dataset_folder import find_dataset
from dsv3_plugin.data.progress import Progress
from dsv3_plugin.data.run_data import RunData, ensure_data
from dsv3_plugin.dispatch.topology import group_topology, grouping_note, ranks_per_node
from dsv3_plugin.recipe import corpora
from dsv3_plugin.recipe.continued import PARENT, Continued
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.recipe.sft import Sft
from dsv3_plugin.training import parent
from dsv3_plugin.training.changed_settings import other_numbers
from dsv3_plugin.training.checkpoint_folder import write_description
from dsv3_plugin.training.conversations import conversation_notes, refuse_other_count
from dsv3_plugin.training.evaluation_notes import evaluation_notes
from dsv3_plugin.training.long_documents_note import packing_notes
from dsv3_plugin.training.resume import (
    refuse_another_model,
    refuse_what_does_not_go_on,
    whole_checkpoint,
)
from dsv3_plugin.training.run import Run
from dsv3_plugin.training.tokenizer_of_weights import refuse_another_tokenizer


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
    counted = recipe.epochs_counted
    data, weights, saved = prepare_data(run, tell)
    resumed = saved is not None and not saved.release
    packing = packing_notes(recipe, data)
    if isinstance(recipe, Sft):
        packing += conversation_notes(recipe, data)
        refuse_other_count(recipe, counted)
    changed = other_numbers(recipe) if resumed else []
    write_description(recipe, data, weights)
    go_on(run, saved, changed, tell)
    notes = (dispatch, *mixture_notes(recipe, data), *packing, *evaluation_notes(recipe, data))
    for note in notes:
        if note is not None:
            tell(note)


def go_on(
    run: Run, saved: Saved | None, changed: Sequence[str], tell: Callable[[str], None]
) -> None:
    """Leave of the run's folder what it goes on from, and say where that is.

    Args:
        run: the run.
        saved: its checkpoint.
        changed: keys that say otherwise than when it was started last.
        tell: takes a sentence for the person.
    """
    recipe = run.recipe
    resumed = saved is not None and not saved.release
    run.folder.metrics.keep_until(saved.iteration if resumed else -1)
    run.folder.write_recipe(recipe.to_yaml(), saved.iteration if resumed else 0)
    if recipe.on_gpu(run.machine):  # NCCL makes no folders
        run.folder.flight_recorder.mkdir(exist_ok=True)
    if resumed:
        tell(f"Going on from step {saved.iteration:,} of {recipe.total_steps:,}.")
    if changed:
        tell(f"From here on the recipe says otherwise than before: {', '.join(changed)}.")


def begin(run: Run, tell: Callable[[str], None]) -> tuple[Path | None, Saved | None]:
    """Look at what a run begins or goes on with.

    Returns:
        The folder that describes its weights, None where it begins with none, and the checkpoint
        that it goes on from.

    Raises:
        UserError: for whatever is wrong with it.
    """
    recipe = run.recipe
    saved = whole_checkpoint(recipe.checkpoint_folder, tell)
    # A release has weights alone: training begins at step 0 and writes that step's line again.
    if saved is not None and not saved.release:
        refuse_what_does_not_go_on(recipe)
    return recipe.checkpoint_folder if saved is not None else _parents(run, tell), saved


def prepare_data(
    run: Run, tell: Callable[[str], None], progress: Progress | None = None
) -> tuple[RunData, Path | None, Saved | None]:
    """Put the data of a run in place, with the weights whose tokenizer encodes them.

    Args:
        run: the run.
        tell: takes a sentence for the person.
        progress: told after every document.

    Returns:
        The data, the folder that describes the weights it begins or goes on with, and the
        checkpoint that it goes on from.

    Raises:
        UserError: for whatever is wrong with the data or the checkpoints.
    """
    weights, saved = begin(run, tell)
    resumed = saved is not None and not saved.release
    return _data(run.recipe, tell, weights, progress, resuming=resumed), weights, saved


def _parents(run: Run, tell: Callable[[str], None]) -> Path | None:
    """Lay what a stage begins with; the folder that describes it. None: it begins with nothing."""
    recipe = run.recipe
    if not isinstance(recipe, Continued):
        return None
    parent.refuse_unfinished(recipe)
    begins_with = parent.find(recipe.from_)
    parent.refuse_another(begins_with, recipe.model)
    tell(f"Beginning with {begins_with}.")
    return parent.lay(begins_with, run.folder.parent, tell)


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


def mixture_notes(recipe: Recipe, data: RunData) -> Iterator[str]:
    """What is read of each member of a mixture; of one corpus alone nothing is said."""
    drawn = [member for _, member in corpora.drawn_from(recipe.data.corpus)]
    tokens = [dataset.manifest.train.tokens for dataset in data.datasets]
    if len(drawn) == 1:
        return
    for member, there, share in zip(drawn, tokens, corpora.shares(drawn, tokens), strict=True):
        times = share * recipe.total_tokens / there
        yield (
            f"{share:.1%} of the sequences come from {member}: its {there:,} tokens {times:,.3g} "
            f"times."
        )


def _data(
    recipe: Recipe,
    tell: Callable[[str], None],
    weights: Path | None,
    progress: Progress | None,
    *,
    resuming: bool,
) -> RunData:
    """The data, encoded with the tokenizer of the weights there are, in the folder `weights`."""
    folder, data = recipe.checkpoint_folder, recipe.data
    if data.tokenizer == PARENT:
        assert weights is not None, "a stage with a parent has weights before its first step"
        data = data.model_copy(update={"tokenizer": str(weights / TOKENIZER)})
    places = corpora.folders(recipe.data_folder, data.corpus)
    if any(find_dataset(place) is None for place in places):
        tell(f"Building the dataset in {recipe.data_folder} (once).")
    return ensure_data(
        data,
        recipe.data_folder,
        recipe.model,
        seed=recipe.training.seed,
        resuming=resuming,
        trained_on=trained_on.read(folder) if resuming else None,
        accept=None if weights is None else partial(refuse_another_tokenizer, weights),
        progress=progress,
        tell=tell,
    )
