"""`python -m dsv3_plugin.cli …`, or a script, without its imports: forked from where they are made.

As in life the command starts its ranks as its children, each a process of its own that hears
signals, has the files that it was given and no others, and dies with its parent. Only where Python
would be executed anew, the forked process goes on as if it had been.
"""

import atexit
import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, TextIO

from tests.forked import forked


class ForkedProcess:
    """A `dsv3` command, with what `subprocess.Popen` offers as far as tests ask for it.

    Args:
        arguments: of `dsv3`, or of the program.
        environment: all of it.
        folder: where the command works; None: where the server does.
        apart: whether what it prints on standard error is kept apart.
        program: another than `dsv3`: a module, or the path of a script.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        folder: Path | None = None,
        apart: bool = False,
        program: str = "dsv3_plugin.cli",
    ) -> None:
        self._printed = tempfile.NamedTemporaryFile()  # noqa: SIM115
        self._complained = tempfile.NamedTemporaryFile() if apart else None  # noqa: SIM115
        files = (self._printed.name, (self._complained or self._printed).name)
        self._process = forked().Process(
            target=_be_command, args=(program, arguments, environment, folder, files)
        )
        self._process.start()
        atexit.register(self.kill)  # where a test has failed: multiprocessing waits for it

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it is there."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self._process.kill()

    @property
    def stdout(self) -> TextIO:
        """What it has printed by now, on either stream if they are not kept apart."""
        return open(self._printed.name, encoding="utf-8")

    def complaints(self) -> str:
        """What it has printed on standard error by now, which is kept apart."""
        return Path(self._complained.name).read_text(encoding="utf-8")

    def communicate(self, timeout: float) -> tuple[str, str | None]:
        """Wait for its end; what it has printed, and on standard error if that is kept apart.

        Raises:
            subprocess.TimeoutExpired: it has not ended within so many seconds.
        """
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("dsv3", timeout)
        printed, complained = self._printed.read(), self._complained and self._complained.read()
        return printed.decode(), None if complained is None else complained.decode()


def printed_by(script: Path, *arguments: str) -> str:
    """What a script prints that comes to a good end, as `python script arguments…`."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = ForkedProcess(arguments, environment, apart=True, program=str(script))
    printed, complained = process.communicate(timeout=600)
    assert process.returncode == 0, complained
    return printed


def _be_command(
    program: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    folder: Path | None,
    printed: tuple[str, str],
) -> NoReturn:
    from dsv3_plugin.launch import local

    _ForkedRank.files_of_the_server = _open_files()
    local.subprocess = SimpleNamespace(**vars(subprocess) | {"Popen": _ForkedRank})
    if folder is not None:
        os.chdir(folder)
    for descriptor, path in zip((1, 2), printed, strict=True):
        with open(path, "ab") as file:
            os.dup2(file.fileno(), descriptor)
    _be_program(program, arguments, environment)


class _ForkedRank(subprocess.Popen):
    """`subprocess.Popen` of `python -m MODULE …`: all that it does up to the execution."""

    files_of_the_server: frozenset[int]

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        preexec_fn: Callable[[], None],
        pass_fds: Sequence[int],
        **options: Any,
    ) -> None:
        assert command[:2] == [sys.executable, "-m"]
        _, _, module, *arguments = command

        def instead_of_executing() -> NoReturn:
            try:
                preexec_fn()
                # Among them the one whose end tells the parent that the program has begun.
                kept = {0, 1, 2, *pass_fds, *self.files_of_the_server}
                for file in _open_files() - kept:
                    os.close(file)
                _be_program(module, arguments, env)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)

        super().__init__(
            command, env=env, preexec_fn=instead_of_executing, pass_fds=pass_fds, **options
        )


def _open_files() -> frozenset[int]:
    """The descriptors of this process."""
    listed = os.listdir("/proc/self/fd")  # with the one by which they were listed
    return frozenset(int(name) for name in listed if os.path.exists(f"/proc/self/fd/{name}"))


def _be_program(program: str, arguments: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Be what `python -m program arguments…` is in an environment, from its start to its end; or,
    where the program is a file, `python program arguments…`."""
    import torch

    multiprocessing.set_start_method(None, force=True)  # not as this process was started
    gc.enable()  # subprocess disables it around a fork
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.argv = [program, *arguments]
    sys.stdout, sys.stderr = (
        os.fdopen(number, "w", 1, "utf-8", "backslashreplace", closefd=False) for number in (1, 2)
    )
    code: object = 0
    try:
        if program.endswith(".py"):
            sys.path.insert(0, os.path.dirname(program))
            runpy.run_path(program, run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)
