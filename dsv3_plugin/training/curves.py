"""The recipe's curves, where upstream reads them.

Learning rate, router-bias speed γ and MTP weight λ are functions of the tokens consumed so far.
That one number comes back with the checkpoint, so a resumed run stands where it stopped. (The
batch size is a curve too; upstream's `--step-batch-size-schedule` carries it.)
"""

from typing import Any

from megatron.core.optimizer_param_scheduler import (
    OptimizerParamScheduler,
    get_canonical_lr_for_logging,
)

from dsv3_plugin.recipe.sections import Curves
from dsv3_plugin.training.hooks import Hook, Step
from dsv3_plugin.training.run import current_run


class CurveScheduler(OptimizerParamScheduler):
    """Upstream's scheduler with the learning rate read from the recipe's curve.

    `num_steps` counts samples (sequences), as upstream does. Where no run of ours trains, this is
    upstream's own scheduler.
    """

    def get_lr(self, param_group: dict[str, Any]) -> float:
        """The learning rate of a parameter group at the tokens consumed so far."""
        run = current_run()
        if run is None:
            return super().get_lr(param_group)
        tokens = self.num_steps * run.recipe.data.seq_length
        return run.recipe.curves.learning_rate(tokens) * param_group.get("lr_mult", 1.0)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint. The recipe may have changed since: its curves count."""
        if current_run() is None:
            super().load_state_dict(state_dict)
        else:
            self.num_steps = 0
            self.step(state_dict["num_steps"])


class CurveValues(Hook):
    """Sets γ and λ for the step, and tells what it computes with.

    Upstream reads both at the moment of use: `moe_router_bias_update_rate` in
    `finalize_model_grads`, `mtp_loss_scaling_factor` in `process_mtp_loss`.
    """

    def __init__(self, curves: Curves) -> None:
        self._curves = curves

    def before_step(self, step: Step) -> None:
        speed = self._curves.router_bias_speed(step.tokens)
        weight = self._curves.mtp_weight(step.tokens)
        step.config.moe_router_bias_update_rate = speed
        step.config.mtp_loss_scaling_factor = weight
        step.numbers |= {
            # Upstream logs the one of the step to come.
            "learning_rate": get_canonical_lr_for_logging(step.optimizer.param_groups),
            "router_bias_speed": speed,
            "mtp_weight": weight,
        }
