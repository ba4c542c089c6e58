"""When another rank is lost: which step it was, and what there is to go on from."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from dsv3_plugin.checkpoint.tracker import newest_complete
from dsv3_plugin.distributed.failures import LostRank, naming_lost, set_timeout
from dsv3_plugin.distributed.missing_ranks import answer_searches
from dsv3_plugin.errors import UserError, user_error_in
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.training.run import Run


@contextlib.contextmanager
def naming_place(run: Run) -> Iterator[None]:
    """Turn the loss of a rank into where the run was, who is lost, and what to go on from.

    Around all that a rank does in a run: whatever waits for another rank in there can fail.

    Raises:
        UserError: another rank died or gave no sign.
    """
    if torch.distributed.get_world_size() == 1:
        yield
        return
    answer_searches()
    everyone = range(torch.distributed.get_world_size())
    try:
        with naming_lost("an exchange among all", everyone):
            yield
    except BaseException as error:
        lost = user_error_in(error)
        if not isinstance(lost, LostRank):
            raise
        raise UserError(f"{run.place}: {lost}; {way_on(run.recipe.checkpoint_folder)}.") from error


def wait_for_ranks(recipe: Recipe) -> None:
    """From now on, wait for other ranks as long as the recipe says, wherever that may be.

    Before the first step they take turns (indices of samples, compiling) and need longer.
    """
    set_timeout(recipe.pipeline.timeout or 60 * recipe.parallel.timeout_minutes)


def way_on(checkpoints: Path) -> str:
    """From where the run can go on."""
    saved = newest_complete(checkpoints)
    if saved is None:
        return "there is no checkpoint yet, the same command begins again"
    return f"the checkpoint of step {saved.iteration:,} is whole, the same command goes on from it"
