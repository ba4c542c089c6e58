"""How good the answers are to prompts that are not trained on."""

from collections.abc import Callable, Sequence

import torch

from dsv3_plugin.recipe.rl import Rl
from dsv3_plugin.stages.policy import Policy
from dsv3_plugin.stages.round_numbers import of_held_out
from dsv3_plugin.training.hooks import Hook, Step
from dsv3_plugin.training.metrics import Metrics
from dsv3_plugin.training.run import Run


class HeldOutPrompts(Hook):
    """Asks them before the first step, every so many steps, and after the last.

    Args:
        run: the run.
        policy: who answers.
        metrics: where the line of the moment before the first step goes.
        settle: waits for answers that are under way; all ranks call it.
    """

    def __init__(
        self, run: Run, policy: Policy, metrics: Metrics, settle: Callable[[], None]
    ) -> None:
        self._recipe: Rl = run.recipe
        self._settle = settle
        self._policy, self._metrics = policy, metrics

    def before_step(self, step: Step) -> None:
        if step.iteration == 1 and self._recipe.data.held_out_sets:
            self._metrics.write(0, self._numbers(step.model, 0))

    def after_step(self, step: Step) -> None:
        interval = self._recipe.training.eval_interval
        last = step.iteration == self._recipe.total_steps
        if interval is not None and (last or step.iteration % interval == 0):
            step.numbers |= self._numbers(step.model, step.iteration)

    def _numbers(self, model: Sequence[torch.nn.Module], iteration: int) -> dict[str, float]:
        """Of all sets together, and of each where there are several."""
        self._settle()
        sets = self._policy.data.held_out
        groups = {
            name: self._policy.groups(
                model,
                asked,
                self._recipe.rollouts.held_out_n,
                (self._recipe.training.seed, "held out", name),
                iteration,
            )[0]
            for name, asked in sets.items()
        }
        every = [group for of_set in groups.values() for group in of_set]
        numbers = {f"rl/{key}": value for key, value in of_held_out(every).items()}
        if len(groups) > 1:
            for name, of_set in groups.items():
                found = of_held_out(of_set)
                numbers |= {f"rl/{key}/{name}": value for key, value in found.items()}
        return numbers
