"""`dsv3 train`: from a recipe to a running run.

Resolves the recipe, says what will happen, holds the run's folder, and starts one process per rank
on this machine, or becomes a rank itself where torchrun or srun already did. Ctrl-C and SIGTERM
save and stop: the ranks finish the step they are in, write a checkpoint and end. A second one ends
them at once.
"""

import math
import os
import shlex
import signal
import time
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from types import FrameType

from dsv3_plugin.dispatch.kernels import refuse_missing_kernels
from dsv3_plugin.errors import UserError
from dsv3_plugin.files import full_disk
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch import local_end
from dsv3_plugin.launch.conversations import count_first
from dsv3_plugin.launch.ending import closing_sentence, is_done, nothing_to_do
from dsv3_plugin.launch.local import Failure, LocalProcesses
from dsv3_plugin.launch.made_first import (
    make_parent,
    missing_parents,
    other_parent,
    refuse_missing_maker,
    refuse_no_parent,
)
from dsv3_plugin.launch.nccl_watchdog import after, lost_sentence
from dsv3_plugin.launch.needs import refuse_missing_rewards, refuse_missing_texts
from dsv3_plugin.launch.place import under_a_launcher
from dsv3_plugin.launch.progress import ProgressDisplay
from dsv3_plugin.launch.rank import be_rank
from dsv3_plugin.launch.summary import summary
from dsv3_plugin.launch.taken import refuse_seen_job
from dsv3_plugin.launch.witness import WATCHDOGS_SECONDS
from dsv3_plugin.machine import Machine
from dsv3_plugin.numbers import number_of
from dsv3_plugin.planner.recipe_schedules import schedules_on, searches
from dsv3_plugin.planner.resolve import load_resolved
from dsv3_plugin.recipe.said_by import inherited
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.rehearsal.quick import refuse_what_upstream_would
from dsv3_plugin.terminal.console import Console
from dsv3_plugin.terminal.lines import note
from dsv3_plugin.training.resume import refuse_what_does_not_go_on

_ONE_REQUEST_S = 1.0
"""Within which the same signal again is the same request."""
_POLL_SECONDS = 0.2
_ON_ITS_WAY = {
    False: "Saving, then stopping. Once more ends it without saving.",
    True: "Stopping: its data are being prepared, and there is nothing to save yet.",
}
"""What is said of a request to stop, by whether there are no steps yet."""

_OTHERS_SECONDS = 0.3
"""How long to wait, when a rank has failed, for the one that it may have failed because of."""


def train(name: str, overrides: list[str], console: Console | None = None) -> int:
    """Train a recipe to its end, or until it is asked to stop.

    Args:
        name: a shipped recipe (`pretrain/tiny`) or a path.
        overrides: `key.path=value` for this run.

    Returns:
        The exit code: 0 when the run ended or saved and stopped on request, 1 when it broke, 130
        when it was made to end without saving.

    Raises:
        UserError: the recipe is wrong, the folder is taken, or a rank met something to mend.
    """
    if under_a_launcher(os.environ):
        return be_rank(name, overrides)
    machine = Machine.here()
    ended = make_parent(name, overrides, machine, partial(train, console=console))
    if ended is not None:
        return ended
    counted = count_first(name, overrides, machine)
    if counted.code:
        return counted.code
    recipe = load_resolved(name, overrides, machine)
    refuse_missing_gpus(recipe, machine)
    refuse_missing_kernels(recipe.dispatch.kind)
    refuse_seen_job(recipe.run_folder)
    try:
        return _locally(name, overrides, recipe, machine, console or Console(), counted.said)
    except OSError as error:
        if full_disk.is_full(error):
            raise UserError(
                f"no space left for the run in {recipe.folder}: make room and start again."
            ) from error
        raise


def dry_run(name: str, overrides: list[str], console: Console | None = None) -> None:
    """Say what `train` would do here, and leave everything as it is.

    Raises:
        UserError: as `train`, as far as that is known before anything is written.
    """
    machine = Machine.here()
    recipe = load_resolved(name, overrides, machine)
    refuse_missing_gpus(recipe, machine)
    refuse_missing_kernels(recipe.dispatch.kind)
    refuse_what_does_not_go_on(recipe)
    console = console or Console()
    if first := missing_parents(recipe, machine):
        for line in _made_first(first):
            console.line_of(line)
    else:
        refuse_no_parent(recipe, machine)
    if (other := other_parent(recipe, machine)) is not None:
        console.line_of(other)
    refuse_missing_texts(recipe)
    refuse_missing_maker(recipe)
    refuse_missing_rewards(recipe)
    recipe.run_folder.refuse_unwritable()
    if recipe.passed_flags:  # of which upstream alone knows what there is
        refuse_what_upstream_would(name, overrides, recipe, machine, console.line_of)
    console.print(summary(recipe, machine, inherited(name, overrides)))
    if overrides:
        console.line_of(f"That is {name} with {shlex.join(overrides)}.")
    if is_done(recipe):
        console.line_of(nothing_to_do(recipe))
        return
    recipe.run_folder.refuse_held()
    refuse_seen_job(recipe.run_folder)
    saved, ranks = recipe.run_folder.steps_saved(), recipe.parallel.processes
    where = f"go on from step {saved:,}" if saved else "begin anew"
    console.line_of(
        f"It would {where}, with {number_of(ranks, 'process', 'processes')} on this "
        f"machine; nothing was started or written."
    )


def _made_first(first: Mapping[str, str]) -> Iterator[str]:
    """What is said of the recipes that a run trains before itself, in their order, and of the
    folder of each."""
    if len(first) == 1:
        [(parent, folder)] = first.items()
        yield f"It would train {parent} first, into {folder}."
        return
    yield f"It would train {len(first)} others first, as these lines would, in this order:"
    widest = max(map(len, map(shlex.quote, first)))
    for parent, folder in first.items():
        yield f"  dsv3 train {shlex.quote(parent):{widest}}  into {folder}"


def refuse_missing_gpus(recipe: Recipe, machine: Machine) -> None:
    """Raise UserError if the ranks need more GPUs than the machine has."""
    if recipe.on_gpu(machine) and machine.gpus < recipe.parallel.processes:
        raise UserError(
            f"the recipe takes {number_of(recipe.parallel.processes, 'GPU')} and this "
            f"machine has {machine.gpus}: start it as a job, by dsv3 launch (dsv3 launch RECIPE "
            "--cluster FILE "
            "--dry-run says here what that would do), or with torchrun or srun on as many. What "
            "runs without a GPU is small, such as the recipe pretrain/tiny."
        )


def _locally(
    name: str,
    overrides: list[str],
    recipe: Recipe,
    machine: Machine,
    console: Console,
    said: Collection[str],
) -> int:
    """Start the ranks on this machine, show their progress, and see them to their end."""
    directory = recipe.run_folder
    with directory.held():
        refuse_what_does_not_go_on(recipe)
        refuse_no_parent(recipe, machine)
        console.print(summary(recipe, machine, inherited(name, overrides)))
        if is_done(recipe):
            console.line_of(nothing_to_do(recipe))
            return 0
        _search_first_schedule(recipe, machine)
        local_end.remember(directory, "begun")
        return _supervise(name, overrides, recipe, directory, console, said)


def _search_first_schedule(recipe: Recipe, machine: Machine) -> None:
    """Let the schedule that the run goes on with be found before its ranks wait for it."""
    if searches(recipe):
        batches = recipe.batch_schedule
        batch = batches.batch(batches.tokens_after(0, recipe.run_folder.steps_saved()))
        per_micro_batch = recipe.training.micro_batch_size * recipe.data_parallel
        schedules_on(recipe, machine)(batch // per_micro_batch)


def _supervise(
    name: str,
    overrides: list[str],
    recipe: Recipe,
    directory: RunFolder,
    console: Console,
    said: Collection[str] = (),
) -> int:
    """Start the ranks and stay until they have ended; what was `said` before is not said again."""
    follower = directory.metrics.follow()
    stop_requests = 0
    hung_up = False

    asked_at: dict[int, float] = {}

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        """Somebody wants it to stop; who signals a process and its group (timeout) does so once."""
        nonlocal stop_requests
        now = time.monotonic()
        if now - asked_at.get(number, -math.inf) < _ONE_REQUEST_S:
            return
        asked_at[number] = now
        stop_requests += 1
        if ranks is not None:
            ranks.signal(signal.SIGTERM if stop_requests == 1 else signal.SIGKILL)

    def hang_up(number: int, frame: FrameType | None) -> None:
        """The terminal closes, which may be told more than once: never a reason not to save."""
        nonlocal hung_up
        if ranks is not None and not hung_up:
            ranks.signal(signal.SIGTERM)
        hung_up = True

    last = None
    told_to_stop = False
    ranks = None
    handlers = {s: signal.signal(s, ask_to_stop) for s in (signal.SIGINT, signal.SIGTERM)}
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # what nohup asks for
        handlers[signal.SIGHUP] = signal.signal(signal.SIGHUP, hang_up)
    ranks = LocalProcesses(
        "dsv3_plugin.launch.rank",
        [name, *overrides],
        processes=recipe.parallel.processes,
        log_directory=directory.logs,
    )
    try:
        if stop_requests or hung_up:
            ranks.signal(signal.SIGTERM)
        with ProgressDisplay(recipe.total_tokens, recipe.training.log_interval, console) as display:
            ended = False
            while not ended:
                # Looked at before the records, so that the last ones are shown too.
                ended = ranks.failed or not ranks.running
                for message in ranks.inbox.receive():
                    if message.kind == "note" and message.text not in said:
                        display.note(message.text)
                records = follower.new_records()
                display.show_all(records)
                last = records[-1] if records else last
                if display.unwritable is not None:
                    hang_up(signal.SIGHUP, None)
                if stop_requests and not told_to_stop:
                    display.note(_ON_ITS_WAY[directory.has_not_trained])
                    told_to_stop = True
                if not ended:
                    time.sleep(_POLL_SECONDS)
        if ranks.failed:
            time.sleep(_OTHERS_SECONDS)
            late = time.monotonic() + WATCHDOGS_SECONDS
            while ranks.aborting and time.monotonic() < late:
                time.sleep(_POLL_SECONDS)
        failure = ranks.failure()
    finally:
        ranks.stop()
        for number, handler in handlers.items():
            signal.signal(number, handler)

    if stop_requests >= 2:
        local_end.remember(directory, "stopped", "Ended without saving.")
        console.line_of(closing_sentence(recipe, "Ended without saving"))
        return 128 + signal.SIGINT
    if failure is not None and not (
        (stop_requests or hung_up) and failure.signal == signal.SIGTERM
    ):
        step = last["iteration"] if last is not None else directory.steps_saved()
        note(f"dsv3: {_explained(failure, step, directory)}")
        return 1
    local_end.remember(directory, "stopped")
    if display.unwritable is not None:
        note(f"dsv3: {display.unwritable} {closing_sentence(recipe)}")
        raise display.unwritable
    console.line_of(closing_sentence(recipe))
    return 0


def _explained(failure: Failure, step: int, directory: RunFolder) -> str:
    """One sentence on why a rank ended, which the run's folder keeps.

    Raises:
        UserError: it ended with a sentence for the person.
    """
    try:
        why = _explain(failure, step, saved=directory.steps_saved() > 0)
    except UserError as refused:
        local_end.remember(directory, "failed", str(refused))
        raise
    local_end.remember(directory, "failed", why)
    return why


def _explain(failure: Failure, step: int, *, saved: bool) -> str:
    """One sentence on why a rank ended.

    Raises:
        UserError: it ended with a sentence for the person.
    """
    if failure.message is not None and failure.message.kind == "refused":
        raise UserError(failure.message.text)
    if failure.lost is not None:
        return lost_sentence(failure.lost, step, failure.log, saved=saved)
    if failure.signal is not None:
        how = f"was killed by signal {failure.signal.value} ({failure.signal.name})"
        if failure.signal == signal.SIGKILL:
            how += ", as the system does when memory runs out,"
    elif failure.message is not None:
        how = f"crashed ({failure.message.text})"
    else:
        how = f"ended with exit code {failure.exit_code}"
    return after(f"rank {failure.rank} {how}", step, failure.log, saved=saved)
