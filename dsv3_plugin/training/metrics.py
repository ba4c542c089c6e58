"""What a run leaves behind of its numbers: one JSON line per step in `metrics.jsonl`.

Upstream hands every number it knows (losses, learning rate, gradient norm, balance and MTP
losses, held-out loss) to the TensorBoard writer of the last rank. `MetricsWriter` stands in front
of that writer, passes all of it on, and keeps a copy of the step's numbers for the line.
"""

import re
import time
from typing import Any

from megatron.training import get_args, get_tensorboard_writer, global_vars
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch.utils.tensorboard import SummaryWriter

from dsv3_plugin.dispatch.step_metrics import tensorboard_scalars
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.training.hooks import Hook, Step

# Upstream's TensorBoard names, and ours in metrics.jsonl. Others keep theirs, in our spelling.
_NAMES = {
    "lm loss": "loss",
    "mtp_1 loss": "mtp_loss",
    "mtp_1_acceptance_rate": "mtp_acceptance_rate",
    "seq_load_balancing_loss": "balance_loss",
    "load_balancing_loss": "balance_loss",
    "learning-rate": "learning_rate",
    "batch-size": "batch_size",
    "grad-norm": "grad_norm",
    "lm loss validation": "validation_loss",
    "draft acceptance validation": "validation_draft_acceptance",
}


def recorded_name(tag: str) -> str | None:
    """What a number of upstream's is called in metrics.jsonl; None where it is no news of the step.

    Twice in TensorBoard is what it also shows over samples. The cumulative acceptance rates begin
    anew whenever the run does.

    Args:
        tag: the number's name in TensorBoard.
    """
    if tag.endswith(" vs samples") or "_cumulative_" in tag:
        return None
    return _NAMES.get(tag) or _spelled(tag)


def of_one_set(numbers: dict[str, float], name: str) -> dict[str, float]:
    """What was found on a held-out set, called as on the documents that were kept back."""
    of_set = _spelled(f"validation-{name}")
    names = {_spelled(tag): ours for tag, ours in _NAMES.items()}
    plain = {key.replace(of_set, "validation"): value for key, value in numbers.items()}
    return {names.get(key, key): value for key, value in plain.items()}


def _spelled(tag: str) -> str:
    return re.sub(r"\W+", "_", tag).strip("_")


class MetricsWriter:
    """A TensorBoard writer that also remembers the scalars it was given."""

    def __init__(self, tensorboard: Any) -> None:
        self._tensorboard = tensorboard
        self._scalars: dict[str, float] = {}

    def add_scalar(self, tag: str, value: Any, iteration: int) -> None:
        """Pass a scalar on to TensorBoard, and keep it for the step's line if it belongs there."""
        self.pass_on(tag, value, iteration)
        name = recorded_name(tag)
        if name is not None:
            self._scalars[name] = float(value)

    def pass_on(self, tag: str, value: Any, iteration: int) -> None:
        """Give TensorBoard a scalar that the line has in another form."""
        self._tensorboard.add_scalar(tag, value, iteration)

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


def thinned(numbers: dict[str, Any], iteration: int, log_interval: int) -> dict[str, Any]:
    """A step's numbers as they are written: the load of each expert not every time.

    It is most of the bytes, about 130 KB per step for DeepSeek-V3. It is written for the first step
    and for every `log_interval`-th, of that step alone; the load of ranks and nodes and MaxVio,
    which tells the worst expert, are in every line.
    """
    if iteration == 1 or iteration % log_interval == 0:
        return numbers
    return {name: value for name, value in numbers.items() if name != "expert_load"}


class Metrics(Hook):
    """Writes metrics.jsonl, on the rank that upstream gave a TensorBoard writer.

    Last in the list: it writes what the hooks before it know of the step.
    """

    def __init__(self, recipe: Recipe, directory: RunFolder) -> None:
        self._seq_length = recipe.data.seq_length
        self._log_interval = recipe.training.log_interval
        self._file = directory.metrics

    def on_log(self, step: Step) -> None:
        writer = get_tensorboard_writer()
        if isinstance(writer, MetricsWriter):
            for name, value in tensorboard_scalars(step.numbers).items():
                writer.pass_on(name, value, step.iteration)
            self.write(step.iteration, {**writer.take(), **step.numbers})

    def on_evaluation(self, iteration: int) -> None:
        writer = get_tensorboard_writer()
        if isinstance(writer, MetricsWriter):
            self.write(iteration, writer.take())

    def on_held_out_set(self, iteration: int, name: str) -> None:
        writer = get_tensorboard_writer()
        if isinstance(writer, MetricsWriter):
            self.write(iteration, {"held_out_set": name, **of_one_set(writer.take(), name)})

    def write(self, iteration: int, numbers: dict[str, Any]) -> None:
        """Write a line, on that rank; without numbers none."""
        writer = get_tensorboard_writer()
        if not numbers or not isinstance(writer, MetricsWriter):
            return
        for name, value in numbers.items():
            if name.startswith("rl/") and value is not None:
                writer.pass_on(name, value, iteration)
        record = {
            "iteration": iteration,
            "tokens": get_args().consumed_train_samples * self._seq_length,
            **thinned(numbers, iteration, self._log_interval),
            "time": round(time.time(), 3),
        }
        self._file.append(record)
