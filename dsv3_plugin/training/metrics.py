"""What a run leaves behind of its numbers: one JSON line per step in `metrics.jsonl`.

Upstream hands every number it knows (losses, learning rate, gradient norm, balance and MTP
losses, held-out loss) to the TensorBoard writer of the last rank. `MetricsWriter` stands in front
of that writer, passes all of it on, and keeps a copy of the step's numbers for the line.
"""

import time
from collections.abc import Callable
from typing import Any

from megatron.training import get_args, get_tensorboard_writer, global_vars, training
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch.utils.tensorboard import SummaryWriter

from dsv3_plugin.dispatch.step_metrics import tensorboard_scalars
from dsv3_plugin.files import metrics_file
from dsv3_plugin.training import run as runs
from dsv3_plugin.training.lost_rank import naming_step

# Upstream's TensorBoard names, and ours in metrics.jsonl.
_NAMES = {
    "lm loss": "loss",
    "mtp_1 loss": "mtp_loss",
    "seq_load_balancing_loss": "balance_loss",
    "load_balancing_loss": "balance_loss",
    "learning-rate": "learning_rate",
    "batch-size": "batch_size",
    "grad-norm": "grad_norm",
    "lm loss validation": "validation_loss",
}


class MetricsWriter:
    """A TensorBoard writer that also remembers the scalars it was given."""

    def __init__(self, tensorboard: Any) -> None:
        self._tensorboard = tensorboard
        self._scalars: dict[str, float] = {}

    def add_scalar(self, name: str, value: Any, iteration: int) -> None:
        """Pass a scalar on to TensorBoard, and keep it for the step's line if it belongs there."""
        self._tensorboard.add_scalar(name, value, iteration)
        if name in _NAMES:
            self._scalars[_NAMES[name]] = float(value)

    def take(self) -> dict[str, float]:
        """The scalars since the last call."""
        scalars, self._scalars = self._scalars, {}
        return scalars

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tensorboard, name)


def observe_tensorboard(saved: int) -> None:
    """Put a `MetricsWriter` before upstream's writer; only the last rank has one.

    Args:
        saved: the step that the run goes on from; 0: it begins.
    """
    writer = global_vars._GLOBAL_TENSORBOARD_WRITER
    if writer is not None and not isinstance(writer, MetricsWriter):
        _forget_from(writer, saved + 1 if saved else 0)
        global_vars._GLOBAL_TENSORBOARD_WRITER = MetricsWriter(writer)


def _forget_from(tensorboard: SummaryWriter, step: int) -> None:
    """Let readers drop the events of a step and after: a run killed before wrote them already.

    What `purge_step` of torch's writer does when it opens its file, which upstream has done by now.
    """
    writer = tensorboard.file_writer
    writer.add_event(Event(step=step, file_version="brain.Event:2"))
    writer.add_event(Event(step=step, session_log=SessionLog(status=SessionLog.START)))


_step: dict[str, Any] = {}
"""What the training step itself measured, for the line that follows it."""


def note_step(**numbers: Any) -> None:
    """Keep numbers of the step just taken for its line in metrics.jsonl."""
    _step.update(numbers)


def thinned(numbers: dict[str, Any], iteration: int, log_interval: int) -> dict[str, Any]:
    """A step's numbers as they are written: the load of each expert not every time.

    It is most of the bytes, about 130 KB per step for DeepSeek-V3. It is written for the first step
    and for every `log_interval`-th, of that step alone; the load of ranks and nodes and MaxVio,
    which tells the worst expert, are in every line.
    """
    if iteration == 1 or iteration % log_interval == 0:
        return numbers
    return {name: value for name, value in numbers.items() if name != "expert_load"}


def _write_line(iteration: int, numbers: dict[str, Any]) -> None:
    run = runs.active()
    if run is None or not numbers:
        return
    seq_length = run.recipe.data.seq_length
    if "step_seconds" in numbers:
        step_tokens = numbers["batch_size"] * seq_length
        numbers["tokens_per_second"] = round(step_tokens / numbers["step_seconds"], 1)
    record = {
        "iteration": iteration,
        "tokens": get_args().consumed_train_samples * seq_length,
        **thinned(numbers, iteration, run.recipe.training.log_interval),
        "time": round(time.time(), 3),
    }
    metrics_file.append(run.directory.metrics, record)


def log_step(training_log: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps upstream's `training_log`: after it, the step's line is written."""

    def logged(
        loss_dict: Any, totals: Any, learning_rate: Any, iteration: int, *args: Any, **kwargs: Any
    ) -> Any:
        answer = training_log(loss_dict, totals, learning_rate, iteration, *args, **kwargs)
        writer = get_tensorboard_writer()
        if isinstance(writer, MetricsWriter):
            for name, value in tensorboard_scalars(_step).items():
                writer.add_scalar(name, value, iteration)
            _write_line(iteration, {**writer.take(), **_step})
        _step.clear()
        return answer

    return logged


def log_evaluation(evaluate_and_print_results: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps upstream's `evaluate_and_print_results`: after it, the held-out loss is written.

    Upstream evaluates once more when training has ended; after a step that was evaluated already
    that would be a second number for the same weights.
    """
    evaluated: int | None = None

    def logged(
        prefix: str,
        forward_step: Any,
        data: Any,
        model: Any,
        iteration: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        nonlocal evaluated
        if runs.active() is not None and iteration == evaluated:
            return None
        with naming_step(f"the evaluation after step {iteration:,}"):
            answer = evaluate_and_print_results(
                prefix, forward_step, data, model, iteration, *args, **kwargs
            )
        evaluated = iteration
        writer = get_tensorboard_writer()
        if isinstance(writer, MetricsWriter):
            _write_line(iteration, writer.take())
        return answer

    return logged


def evaluate_first(train: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps upstream's `train`: a run that begins is evaluated before its first step.

    Where fine-tuning starts, and what training gained, are both told by that number.
    """

    def trained(
        forward_step: Any,
        model: Any,
        optimizer: Any,
        scheduler: Any,
        train_data: Any,
        validation_data: Any,
        process_non_loss_data: Any,
        config: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        settings = get_args()
        if runs.active() is not None and settings.iteration == 0 and settings.do_valid:
            training.evaluate_and_print_results(
                "iteration 0",
                forward_step,
                validation_data,
                model,
                0,
                process_non_loss_data,
                config,
                pg_collection=kwargs.get("pg_collection"),
                p2p_communicator=kwargs.get("p2p_communicator"),
            )
        return train(
            forward_step,
            model,
            optimizer,
            scheduler,
            train_data,
            validation_data,
            process_non_loss_data,
            config,
            *args,
            **kwargs,
        )

    return trained
