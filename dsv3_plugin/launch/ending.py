"""How a run stands when its command ends. No torch here."""

from dsv3_plugin.checkpoint import tracker
from dsv3_plugin.launch.progress import describe
from dsv3_plugin.recipe.rl import Rl
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.training.changed_settings import other_numbers


def nothing_to_do(recipe: Recipe) -> str:
    """That the run has had all its tokens, and whether it had them otherwise than it says now."""
    sentence = f"Nothing to do: the run in {recipe.run_folder.root} has had all its tokens."
    if changed := other_numbers(recipe):
        sentence += (
            f" It had them with another {', '.join(changed)} than the recipe says now, which takes "
            f"another folder: directory=PATH."
        )
    return sentence


def is_done(recipe: Recipe) -> bool:
    """Whether the run has had all its tokens, is saved, and evaluated where that was asked for."""
    if recipe.run_folder.steps_saved() < recipe.total_steps:
        return False
    saved = tracker.newest_complete(recipe.checkpoint_folder)
    if saved is None or saved.iteration < recipe.total_steps:
        return False
    if isinstance(recipe, Rl):  # which evaluates before it saves
        return True
    return recipe.training.eval_interval is None or _is_evaluated(recipe, saved.iteration)


def _is_evaluated(recipe: Recipe, step: int) -> bool:
    """Upstream evaluates after the last save: a run can end between the two."""
    data = recipe.data
    wanted = {*([None] if data.held_out else []), *data.held_out_sets}
    return wanted <= {
        record.get("held_out_set")
        for record in recipe.run_folder.metrics.stream()
        if record["iteration"] == step and "validation_loss" in record
    }


def closing_sentence(recipe: Recipe, stopped: str = "Stopped") -> str:
    """Done with which numbers, or stopped, and from where the same command goes on."""
    folder = recipe.run_folder
    if is_done(recipe):
        records = folder.metrics.read()
        kept_back = [record for record in records if "held_out_set" not in record]
        # Without a file of metrics, or with a damaged one, the checkpoint says how far it came.
        [*_, last] = [
            {"iteration": folder.steps_saved()},
            *(kept_back if recipe.data.held_out else records),
        ]
        return f"Done: {describe(last)}. Everything is in {folder.root}."
    return f"{stopped}: the same command {folder.goes_on}. The run is in {folder.root}."
