"""One rank of a run, from its first moment to its end.

`dsv3 train` starts `python -m dsv3_plugin.launch.rank RECIPE [key=value …]` once per rank;
torchrun and srun start `dsv3 train` itself, which then becomes a rank here. A rank makes its
process a host for Megatron (a GPU with NCCL, or the CPU with gloo), waits until rank 0 has put the
run's folders in order, and hands over to the recipe's stage. Whatever it has to tell the person
goes through `distributed.messages`; everything else lands in its log.
"""

import contextlib
import datetime
import errno
import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any, TextIO

from dsv3_plugin.dispatch.topology import launched_per_node
from dsv3_plugin.distributed.device_environment import device_environment
from dsv3_plugin.distributed.messages import Outbox
from dsv3_plugin.errors import Passing, SaidElsewhere, UserError, causes, user_error_in
from dsv3_plugin.files import full_disk
from dsv3_plugin.files.atomic import append_to
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch.ending import closing_sentence, is_done, nothing_to_do
from dsv3_plugin.launch.local import STORE
from dsv3_plugin.launch.logs import start_line
from dsv3_plugin.launch.made_first import make_data
from dsv3_plugin.launch.place import check_meeting_place, place
from dsv3_plugin.launch.starts import TRY_AGAIN
from dsv3_plugin.launch.summary import summary
from dsv3_plugin.launch.taken import refuse_seen_job
from dsv3_plugin.launch.watch import watching
from dsv3_plugin.launch.witness import witnessed
from dsv3_plugin.machine import Machine
from dsv3_plugin.numbers import number_of
from dsv3_plugin.planner.resolve import load_resolved
from dsv3_plugin.recipe.said_by import inherited
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.rehearsal.quick import refuse_what_upstream_would
from dsv3_plugin.terminal import lines
from dsv3_plugin.terminal.console import Console
from dsv3_plugin.training.resume import refuse_what_does_not_go_on

_LAUNCHED = "DSV3_LAUNCHED"
"""Environment variable, of the script of a job, whose run was rehearsed before it was queued."""

_OF_THE_PLACE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP,
}  # fmt: skip
"""What the system says of a path that somebody else has to mend."""


def be_rank(name: str, overrides: list[str]) -> int:
    """Be one rank of the run of a recipe. May end the process instead of returning.

    Returns:
        The exit code: 0 when the run ended or stopped on request.
    """
    outbox = Outbox()
    try:
        _run(name, overrides, outbox)
    except SystemExit as end:
        return _exit_code(end, outbox)
    except BaseException as error:
        code = _tell(error, outbox)
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit: the other ranks wait in a collective, and the interpreter would wait for
        # them on its way out.
        os._exit(code)
    return 0


def _run(name: str, overrides: list[str], outbox: Outbox) -> None:
    signal.signal(signal.SIGINT, _interrupt)
    if not outbox.has_parent and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _hang_up)
    os.environ.update(place(os.environ))
    machine = Machine.here()
    recipe = _load(name, overrides, machine)
    directory = recipe.run_folder
    if outbox.has_parent:
        join_world(recipe, machine, outbox)
        train_as_rank(recipe, directory, machine, outbox)
        return

    # Under a launcher there is no parent of ours: rank 0 does its part too.
    console = Console()
    refusal = _rehearsed_first(name, overrides, recipe, machine, outbox)
    join_world(recipe, machine, outbox)
    first_on_rank_zero("rehearsal", lambda: _end_if(refusal), outbox)
    with contextlib.ExitStack() as stack:
        first_on_rank_zero("lock", lambda: _held(directory, stack), outbox)
        if _rank() == 0:
            console.print(summary(recipe, machine, inherited(name, overrides)))
        first_on_rank_zero("settings", lambda: refuse_what_does_not_go_on(recipe), outbox)
        if is_done(recipe):
            if _rank() == 0:
                console.line_of(nothing_to_do(recipe))
            return
        first_on_rank_zero("made", lambda: make_data(recipe), outbox)
        terminal = lines.text_file(os.dup(2))
        console = _output_into_log(directory, outbox, terminal)
        if _rank() != 0:
            train_as_rank(recipe, directory, machine, outbox)
            return
        try:
            with (
                witnessed(directory, recipe.parallel.processes, terminal),
                watching(recipe, directory, console),
            ):
                train_as_rank(recipe, directory, machine, outbox)
        except SystemExit as end:
            if end.code not in (None, 0):
                raise
        console.line_of(closing_sentence(recipe))


def train_as_rank(
    recipe: Recipe, directory: RunFolder, machine: Machine, outbox: Outbox, make_stage: Any = None
) -> None:
    """Train in this process, which is part of the run's world already.

    Args:
        recipe: what.
        directory: where it leaves what it leaves.
        machine: what this process runs on.
        outbox: for what the person should know meanwhile.
        make_stage: makes the stage of a run; None: the one that the recipe names.

    Raises:
        UserError: for whatever the user can mend.
    """
    # Here, since they bring Megatron with them, which finds the host as `join_world` left it.
    from dsv3_plugin.stages import stage_named
    from dsv3_plugin.training import upstream_arguments
    from dsv3_plugin.training.lost_rank import naming_place
    from dsv3_plugin.training.run import Run
    from dsv3_plugin.training.trainer import train

    tell = functools.partial(outbox.send, "note")
    run = Run(recipe, directory, machine, tell=tell)
    stage = (make_stage or stage_named(recipe.stage))(run)
    with naming_place(run):
        # Before anything is written: what Megatron refuses must not change a run that is there.
        first_on_rank_zero("arguments", lambda: upstream_arguments.check(recipe, machine), outbox)
        if stage.needs is not None:
            _look_on_machines(stage.needs(_rank()), outbox)
        first_on_rank_zero("prepare", lambda: stage.prepare(tell), outbox)
        train(run, stage)


def _load(name: str, overrides: list[str], machine: Machine) -> Recipe:
    """The recipe; what is wrong with it, every rank finds, and rank 0 says."""
    try:
        recipe = load_resolved(name, overrides, machine)
        refuse_other_world(recipe)
    except UserError as error:
        if _rank() == 0:
            raise
        raise SaidElsewhere(str(error)) from error
    return recipe


def refuse_other_world(recipe: Recipe) -> None:
    """Raise UserError unless as many ranks were started as the recipe divides its work among."""
    world_size = int(os.environ["WORLD_SIZE"])
    if world_size != recipe.parallel.processes:
        raise UserError(
            f"the recipe is for "
            f"{number_of(recipe.parallel.processes, 'process', 'processes')} and the launcher "
            "started "
            f"{world_size}: start as many, or set parallel.processes={world_size}."
        )


def join_world(recipe: Recipe, machine: Machine, outbox: Outbox) -> None:
    """Join the process group of the run, on a GPU or as a CPU host as the recipe wants it.

    Raises:
        UserError: the recipe wants a GPU and there is none for this rank; the ranks do not meet.
    """
    on_gpu = recipe.on_gpu(machine)
    if on_gpu:
        dumps = recipe.run_folder.flight_recorder
        os.environ.update(device_environment(os.environ, dumps))
    from dsv3_plugin.distributed import world

    world.order_kernels(recipe)  # before CUDA starts
    backend = "nccl" if on_gpu else "gloo"
    timeout = datetime.timedelta(minutes=recipe.parallel.timeout_minutes)
    store = None
    if outbox.has_parent:
        store = world.store_in_file(int(os.environ[STORE]), timeout)
    elif recipe.parallel.processes == 1:
        store = world.store_of_one()
    else:
        check_meeting_place(os.environ)
    world.join(backend, int(os.environ["LOCAL_RANK"]), timeout, store)


def first_on_rank_zero(what: str, work: Callable[[], object], outbox: Outbox) -> None:
    """Do `work` on rank 0 while the others wait, however long it takes.

    Raises:
        UserError: on every rank, if `work` raised it.
    """
    from dsv3_plugin.distributed.rank_zero_first import rank_zero_first

    def told() -> str:
        try:
            work()
        except UserError as error:
            # Told before the others hear of it: the first that ends would be taken for the cause.
            if not isinstance(error, SaidElsewhere):
                outbox.send("refused", str(error))
            raise
        return ""

    try:
        rank_zero_first(what, told)
    except UserError as error:
        raise SaidElsewhere(str(error)) from error


def _look_on_machines(look: Callable[[], None] | None, outbox: Outbox) -> None:
    """Raise UserError, on every rank, if a machine has not what a rank of it needs.

    Args:
        look: at this rank's; None: it needs nothing.
    """
    from dsv3_plugin.distributed.on_every_machine import looked_at

    refuse = looked_at("needs", look, os.uname().nodename)
    first_on_rank_zero("machines", refuse, outbox)


def _output_into_log(directory: RunFolder, outbox: Outbox, complaints: TextIO) -> Console:
    """Let everything this process prints land in its log; messages and progress stay outside.

    Args:
        directory: the run's.
        outbox: whose messages go to `complaints` from now on.
        complaints: what standard error is until then.

    Returns:
        A console on what was standard output.
    """
    directory.logs.mkdir(parents=True, exist_ok=True)
    terminal = lines.Output(lines.text_file(os.dup(1)))
    outbox.write_to(complaints)
    with append_to(directory.logs / f"rank{_rank()}.log") as log:
        log.write(start_line())
        log.flush()
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
    lines.log_into_standard_streams()
    return Console(file=terminal)


def _held(directory: RunFolder, stack: contextlib.ExitStack) -> None:
    """Hold the run's folder, unless it is that of a job which this is no part of.

    Raises:
        UserError: it is that, or another process holds it.
    """
    if _LAUNCHED not in os.environ:
        refuse_seen_job(directory)
    stack.enter_context(directory.held())


def _rehearsed_first(
    name: str, overrides: list[str], recipe: Recipe, machine: Machine, outbox: Outbox
) -> UserError | None:
    """Rehearse the configuration on rank 0 of several nodes, while the others come together.

    Returns:
        What stops the run, told already. The ranks meet nevertheless: until they have, none of them
        can be told to end.
    """
    known = _LAUNCHED in os.environ or is_done(recipe)
    if _rank() != 0 or known or not _on_several_nodes(recipe):
        return None
    tell = functools.partial(outbox.send, "note")
    try:
        refuse_what_upstream_would(name, overrides, recipe, machine, tell)
    except UserError as error:
        outbox.send("refused", str(error))
        return SaidElsewhere(str(error))
    return None


def _end_if(refusal: UserError | None) -> None:
    if refusal is not None:
        raise refusal


def _on_several_nodes(recipe: Recipe) -> bool:
    """Whether ranks of other machines wait: what goes wrong there later costs all of them."""
    here = launched_per_node(os.environ)
    return here is not None and here < recipe.parallel.processes


def _rank() -> int:
    return int(os.environ["RANK"])


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C is a request to save and stop, as SIGTERM is to upstream; a second one ends it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def _hang_up(number: int, frame: FrameType | None) -> None:
    """A closed terminal is the same request, however often it is told."""
    os.kill(os.getpid(), signal.SIGTERM)


def _tell(error: BaseException, outbox: Outbox) -> int:
    """Tell the person why this rank ends; the traceback is for the log alone."""
    refusal = user_error_in(error)
    if refusal is None or outbox.has_log:
        with contextlib.suppress(OSError):  # the disk may be full
            traceback.print_exception(error)
    if refusal is None and full_disk.is_full(error):
        refusal = UserError(
            "no space left on the disk of the run: make room and start again; the run goes on from "
            "its last checkpoint."
        )
    if refusal is None and isinstance(error, OSError) and error.errno in _OF_THE_PLACE:
        refusal = UserError(f"{error.filename}: {error.strerror}.")  # as any verb says it
    if refusal is not None:
        if not isinstance(refusal, SaidElsewhere):
            outbox.send("refused", str(refusal))
        passing = any(isinstance(cause, Passing) for cause in causes(error))
        return TRY_AGAIN if passing and _in_a_job(outbox) else 2
    summary = str(error).strip().split("\n")[0]
    outbox.send(
        "crashed", f"{type(error).__name__}: {summary}" if summary else type(error).__name__
    )
    return 1


def _in_a_job(outbox: Outbox) -> bool:
    """Whether it is the script of a job that hears how this rank ends, by srun's exit code."""
    return not outbox.has_parent and "SLURM_JOB_ID" in os.environ


def _exit_code(end: SystemExit, outbox: Outbox) -> int:
    if end.code in (None, 0):
        return 0
    outbox.send("crashed", f"Megatron stopped with exit code {end.code}")
    return 1


if __name__ == "__main__":
    sys.exit(be_rank(sys.argv[1], sys.argv[2:]))
