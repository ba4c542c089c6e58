"""The number of the step in a checkpoint of chained optimizers: one for all of them.

Upstream keeps dense and expert parameters in an optimizer each, and saves the number of the step
among what all ranks have in common, which is written by rank 0 alone. Where its stage of the
pipeline has no experts, its optimizer of experts is empty and has no step: the unsharded
one's is then missing, and torch's AdamW refuses to load on the stages that have experts; the
sharded one's (ZeRO-1) is missing too, or 0, and experts go on with the bias correction of a first
step. All of a chain take the same steps (upstream asserts it in `_synchronize_steps`), so the
others know the number, also in checkpoints that were saved before.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any


def load_state_dict(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `ChainedOptimizer.load_state_dict`: each optimizer is at the step of the others."""

    @functools.wraps(original)
    def at_one_step(self: Any, state_dict: Any) -> None:
        if len(self.chained_optimizers) > 1:
            saved = state_dict.values() if isinstance(state_dict, dict) else state_dict
            _share([one.get("optimizer", one) for one in saved])
        original(self, state_dict)

    return at_one_step


def _share(saved: list[dict[str, Any]]) -> None:
    """Give the largest step of all to those that have a smaller one or none, in place."""
    unsharded = [one["state"] for one in saved if "state" in one]
    common = [state["common_step"] for state in unsharded if "common_step" in state]
    for state in unsharded if common else ():
        if state:  # a stage without experts has nothing to go on with
            state["common_step"] = max(common)
    steps = [group["step"] for group in _sharded_groups(saved) if group.get("step") is not None]
    for group in _sharded_groups(saved) if steps else ():
        group["step"] = max(steps)


def _sharded_groups(saved: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Groups of sharded optimizers, which keep the step there."""
    for one in saved:
        if "state" not in one:
            yield from one.get("param_groups", ())
