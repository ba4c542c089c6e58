"""When another rank is lost: which step it was, and what there is to go on from."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from dsv3_plugin.checkpoint.tracker import newest_complete
from dsv3_plugin.distributed.failures import LostRank, naming_lost
from dsv3_plugin.distributed.missing_ranks import answer_searches
from dsv3_plugin.errors import UserError
from dsv3_plugin.training.run import Run


@contextlib.contextmanager
def naming_step(run: Run, where: Callable[[], str]) -> Iterator[None]:
    """Add to the loss of a rank where the run was, and its last whole checkpoint.

    Args:
        run: what trains.
        where: what to call the place then: "step 12", "the evaluation after step 12".

    Raises:
        UserError: another rank died or gave no sign, inside the pipeline or elsewhere in a step.
    """
    if torch.distributed.get_world_size() == 1:
        yield
        return
    answer_searches()
    everyone = range(torch.distributed.get_world_size())
    try:
        with naming_lost("an exchange among all", everyone):
            yield
    except LostRank as lost:
        raise UserError(f"{where()}: {lost}; {way_on(run.recipe.checkpoint_folder)}.") from lost


def way_on(checkpoints: Path) -> str:
    """From where the run can go on."""
    saved = newest_complete(checkpoints)
    if saved is None:
        return "there is no checkpoint yet, the same command begins again"
    return f"the checkpoint of step {saved.iteration:,} is whole, the same command goes on from it"
