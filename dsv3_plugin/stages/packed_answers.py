"""Answers as the micro-batches of a step: as many as the recipe's schedule takes."""

from collections.abc import Sequence

from megatron.core import parallel_state
from torch import Tensor

from dsv3_plugin.recipe.rl import Rl
from dsv3_plugin.rollouts.rows import Text, micro_batches, packed


def micro_batches_of(texts: Sequence[Text], recipe: Rl) -> list[dict[str, Tensor]]:
    """This rank's part of answers, `[b, s]` each; every rank has as many, padding alone among them.

    Args:
        texts: the same on all ranks.
        recipe: the run's.
    """
    size, ranks = recipe.training.micro_batch_size, parallel_state.get_data_parallel_world_size()
    together, kind = size * ranks, recipe.schedule_kind
    fewest = kind.least_micro_batches(recipe.parallel.pipeline) if kind else 1
    multiple = recipe.micro_batches_together
    fewest += -fewest % multiple
    rows = packed(texts, recipe.data.seq_length, multiple * together, 0, fewest * together)
    return micro_batches(rows, size, parallel_state.get_data_parallel_rank(), ranks)
