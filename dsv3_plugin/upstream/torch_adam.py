"""torch's AdamW under upstream's optimizers: stepping it in one pass, and resuming it sharded.

Where neither Apex nor Transformer Engine is installed, upstream's optimizers keep torch's AdamW
beneath them, as torch makes it by default: a dozen passes over every parameter. torch's own fused
step is one, and differs by a rounding: runs of ours take it.

Its states carry the number of the step as a tensor, and three things then go wrong when a
checkpoint of the sharded optimizer (ZeRO-1) is loaded: upstream asks for that number before there
is any state; it looks for it among the saved moments; and it gives all states one tensor for it,
which every parameter counts up.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

from dsv3_plugin.upstream import own_run
from dsv3_plugin.upstream.learning_rates import with_rate_of

_NO_PARAMETER = "before the first step"


def get_megatron_optimizer_based_on_param_groups(
    original: Callable[..., Any],
) -> Callable[..., Any]:
    """Wraps `_get_megatron_optimizer_based_on_param_groups`: torch's Adam takes fused steps."""

    @functools.wraps(original)
    def optimizer_of_param_groups(*args: Any, **kwargs: Any) -> Any:
        made = original(*args, **kwargs)
        adam = getattr(made, "optimizer", None)  # a pair, where upstream is asked not to wrap it
        if own_run.is_training() and isinstance(adam, torch.optim.Adam):  # AdamW too
            _fuse(adam.param_groups)
            # A checkpoint brings its own groups: of another optimizer, or of torch's default.
            # Before they are loaded, because torch puts each step's number where they say.
            adam.register_load_state_dict_pre_hook(lambda _, saved: _fuse(saved["param_groups"]))
        return made

    return optimizer_of_param_groups


def _fuse(groups: list[dict[str, Any]]) -> None:
    for group in groups:
        group["fused"] = True


def state_dict(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `DistributedOptimizer.state_dict`: an optimizer that took no step is at step 0."""

    @functools.wraps(original)
    def at_step_zero(self: Any) -> Any:
        states = self.optimizer.state
        if len(states) or not isinstance(self.optimizer, torch.optim.Optimizer):
            return original(self)
        states[_NO_PARAMETER] = {"step": torch.tensor(0.0)}
        try:
            return original(self)
        finally:
            states.clear()

    return at_step_zero


def load_state_dict(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `DistributedOptimizer.load_state_dict`: each state counts its own steps.

    And groups of any learning rate are found, as in the unsharded optimizer (learning_rates.py).
    """

    @functools.wraps(original)
    def with_steps_of_their_own(self: Any, state_dict: Any) -> None:
        if saved := state_dict.get("optimizer"):  # Megatron-FSDP's has another form
            groups = with_rate_of(self.optimizer.param_groups, saved["param_groups"])
            state_dict = state_dict | {"optimizer": saved | {"param_groups": groups}}
        original(self, state_dict)
        for state in self.optimizer.state.values():
            if torch.is_tensor(state.get("step")):
                state["step"] = state["step"].clone()

    return with_steps_of_their_own


def set_main_param_and_optimizer_states(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `DistributedOptimizer._set_main_param_and_optimizer_states`: steps are no moments."""

    @functools.wraps(original)
    def without_step(self: Any, model_param: Any, tensors: dict[str, Any]) -> None:
        original(self, model_param, {"step": None, **tensors})

    return without_step
