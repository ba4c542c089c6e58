"""What we add to upstream's training step: the recipe's curves, and a clock.

Learning rate, router-bias speed γ and MTP weight λ are functions of the tokens consumed so far.
That one number comes back with the checkpoint, so a resumed run stands where it stopped. (The
batch size is a curve too; upstream's `--step-batch-size-schedule` carries it.)
"""

import time
from collections.abc import Callable
from typing import Any

from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.core.optimizer_param_scheduler import (
    OptimizerParamScheduler,
    get_canonical_lr_for_logging,
)
from megatron.training import get_args

from dsv3_plugin.dispatch.step_metrics import collect_step_metrics, discard_counts
from dsv3_plugin.training import metrics
from dsv3_plugin.training import run as runs
from dsv3_plugin.training.lost_rank import naming_step

micro_batches: int | None = None
"""How many micro-batches the step before had in this process; None before the first."""


class CurveScheduler(OptimizerParamScheduler):
    """Upstream's scheduler with the learning rate read from the recipe's curve.

    `num_steps` counts samples (sequences), as upstream does. Without an active run this is
    upstream's own scheduler.
    """

    def get_lr(self, param_group: dict[str, Any]) -> float:
        """The learning rate of a parameter group at the tokens consumed so far."""
        run = runs.active()
        if run is None:
            return super().get_lr(param_group)
        tokens = self.num_steps * run.recipe.data.seq_length
        return run.recipe.curves.learning_rate(tokens) * param_group.get("lr_mult", 1.0)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint. The recipe may have changed since: its curves count."""
        if runs.active() is None:
            super().load_state_dict(state_dict)
        else:
            self.num_steps = 0
            self.step(state_dict["num_steps"])


def step_on_curves(train_step: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps upstream's `train_step`: γ and λ are set on the model's configuration before it.

    Upstream reads both at the moment of use: `moe_router_bias_update_rate` in
    `finalize_model_grads`, `mtp_loss_scaling_factor` in `process_mtp_loss`.
    """

    def stepped(
        forward_step: Any,
        data_iterator: Any,
        model: Any,
        optimizer: Any,
        scheduler: Any,
        config: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        global micro_batches
        run = runs.active()
        if run is None:
            return train_step(
                forward_step, data_iterator, model, optimizer, scheduler, config, *args, **kwargs
            )
        samples = get_args().consumed_train_samples
        tokens = samples * run.recipe.data.seq_length
        config.moe_router_bias_update_rate = run.recipe.curves.router_bias_speed(tokens)
        config.mtp_loss_scaling_factor = run.recipe.curves.mtp_weight(tokens)
        learning_rate = get_canonical_lr_for_logging(optimizer.param_groups)
        micro_batches = get_num_microbatches()
        discard_counts(model)
        begin = time.perf_counter()
        with naming_step(f"step {get_args().curr_iteration + 1:,}"):
            answer = train_step(
                forward_step, data_iterator, model, optimizer, scheduler, config, *args, **kwargs
            )
        metrics.note_step(
            learning_rate=learning_rate,  # upstream logs the one of the step to come
            router_bias_speed=config.moe_router_bias_update_rate,
            mtp_weight=config.mtp_loss_scaling_factor,
            step_seconds=round(time.perf_counter() - begin, 4),
            **collect_step_metrics(model),
        )
        return answer

    return stepped
