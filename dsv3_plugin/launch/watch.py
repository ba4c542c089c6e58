"""Showing a run's progress while it goes on, from the lines it adds to metrics.jsonl."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch.progress import ProgressDisplay
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.terminal.console import Console

_SECONDS = 0.5


@contextlib.contextmanager
def watching(recipe: Recipe, directory: RunFolder, console: Console) -> Iterator[None]:
    """Show progress from a thread of this process for as long as the block lasts.

    Where it cannot be shown any more, the run is asked to save and stop, as by SIGTERM.

    Raises:
        Unwritable: after the block, if progress could not be shown to its end.
    """
    follower = directory.metrics.follow()
    ended = threading.Event()

    with ProgressDisplay(recipe.total_tokens, recipe.training.log_interval, console) as display:

        def watch() -> None:
            while not ended.wait(_SECONDS):
                display.show_all(follower.new_records())
                if display.unwritable is not None:
                    os.kill(os.getpid(), signal.SIGTERM)
                    return

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            display.show_all(follower.new_records())
    if display.unwritable is not None:
        raise display.unwritable
