"""How fast a step was."""

import time

from dsv3_plugin.training.hooks import Hook, Step


class Throughput(Hook):
    """Tells the seconds of a step and its tokens per second, over all ranks.

    First in the list: what other hooks do after the step is not in its time.
    """

    def __init__(self, seq_length: int) -> None:
        self._seq_length = seq_length
        self._began = 0.0

    def before_step(self, step: Step) -> None:
        self._began = time.perf_counter()

    def after_step(self, step: Step) -> None:
        seconds = round(time.perf_counter() - self._began, 4)
        step.numbers["step_seconds"] = seconds
        tokens = step.batch_size * self._seq_length
        step.numbers["tokens_per_second"] = round(tokens / max(seconds, 1e-4), 1)
