"""Going on with another learning rate than the checkpoint was written with.

Upstream finds a saved parameter group again by its settings. One of them is `max_lr`, here the
largest value of the run's curve: a curve that is lowered after a spike would find no group. For
runs of ours alone: everybody else is told, as upstream does, that the groups do not match.
"""

import functools
from collections.abc import Callable
from typing import Any

from dsv3_plugin.upstream import own_run

Groups = list[dict[str, Any]]


def filter_and_reorder_param_groups(original: Callable[..., Groups]) -> staticmethod:
    """Wraps `MegatronOptimizer._filter_and_reorder_param_groups`: groups of any rate are found."""

    @functools.wraps(original)
    def of_any_rate(current_groups: Groups, state_dict_groups: Groups) -> Groups:
        return original(current_groups, with_rate_of(current_groups, state_dict_groups))

    return staticmethod(of_any_rate)


def with_rate_of(current: Groups, saved: Groups) -> Groups:
    """The saved groups with the largest rate of the current ones, in a run of ours.

    Only where one rate is everybody's: groups that differ in it are known by it.
    """
    if not own_run.is_training():
        return saved
    rates = {group.get("max_lr") for group in current}
    if len(rates) > 1 or len({group.get("max_lr") for group in saved}) > 1:
        return saved
    return [group | {"max_lr": rate} for group in saved for rate in rates]
