"""A stranger's Python in a process that sees no files of ours, no network and no other process.

bubblewrap (github.com/containers/bubblewrap) makes the walls out of Linux's namespaces, as an
ordinary user; the kernel's limits bound time, memory, files and processes. Root is an ordinary user
within them, too (`nobody`): the kernel holds root to no number of processes.
"""

import json
import os
import secrets
import select
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dsv3_plugin.errors import UserError
from dsv3_plugin.rewards.nobody import NOBODY, as_root_of_two


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: by the clock from when the program begins, and of processor time.
        memory: bytes of each process's address space, and of all files it writes.
        output: bytes of what it prints, and of each file.
        processes: at once.
    """

    seconds: float = 10.0
    memory: int = 2**29
    output: int = 2**20
    processes: int = 16


@dataclass(frozen=True)
class Ran:
    """Attributes:
    output: what the program printed, errors too.
    passed: it came to its last line by itself.
    problem: what ended it otherwise.
    """

    output: str
    passed: bool
    problem: str = ""


_GONE = {137: "it was killed", 152: "it took too much processor time"}
_TO_BEGIN_S = 60.0
"""In which a program has to begin; its own seconds count from there."""
_SAID = 400
"""Characters of what is wrong with the walls."""
_PROGRAM, _BEGIN = "/program.py", "/begin.py"
_RUN = f"""
import os, sys
root, end, begun = int(sys.argv.pop()), int(sys.argv.pop()), int(sys.argv.pop())
if root:
    os.setgroups([])
    os.setresgid(*[{NOBODY}] * 3)
    os.setresuid(*[{NOBODY}] * 3)
program = open({_PROGRAM!r}, "rb").read()
os.write(begun, b"1")
os.close(begun)
exec(compile(program, {_PROGRAM!r}, "exec"), {{"__name__": "__main__"}})
sys.stdout.flush()
os.write(1, os.read(end, 64))
"""
"""Runs the program, and then says so by a mark that it reads only now. The program could read it
before, or change Python around itself: where that matters, compare what it prints."""


def check() -> None:
    """Raise UserError where programs cannot be run, or an empty one does not come to its end."""
    if not (done := ran("pass", limits=Limits(seconds=60.0))).passed:
        raise _broken(done.problem)


def ran(program: str, given: str = "", limits: Limits | None = None) -> Ran:
    """Run a program, and whatever it starts, to its end.

    Args:
        program: Python.
        given: its standard input.
        limits: of it.

    Raises:
        UserError: bubblewrap is not here, the kernel lets no namespaces be made, or what is within
            the walls does not come to the program. That is no fault of the program.
    """
    limits = limits or Limits()
    mark = f"\n{secrets.token_hex(16)}\n"
    root = os.geteuid() == 0
    with ExitStack() as stack:
        heard, begun = (
            stack.enter_context(open(end, mode, buffering=0))
            for end, mode in zip(os.pipe(), ("rb", "wb"), strict=True)
        )
        output, errors, status, end, source, begin, typed = (
            stack.enter_context(tempfile.TemporaryFile()) for _ in range(7)
        )
        for file, text in ((end, mark), (source, program), (begin, _RUN)):
            _put(file, text)
        typed.write(given.encode(errors="replace"))
        typed.seek(0)
        handed = [file.fileno() for file in (status, end, source, begin, begun)]
        command = [
            *(as_root_of_two() if root else ()),
            *_walls(limits, root, status.fileno(), source.fileno(), begin.fileno()),
            *_limited(limits),
            *(sys.executable, "-I", _BEGIN, str(begun.fileno()), str(end.fileno()), f"{root:d}"),
        ]
        files = {"stdin": typed, "stdout": output, "stderr": errors}
        with _ended(subprocess.Popen(command, **files, pass_fds=handed)) as running:
            begun.close()
            if not select.select([heard], [], [], _TO_BEGIN_S)[0]:
                raise _broken(f"no program had begun after {_TO_BEGIN_S:g} s")
            has_begun = heard.read(1) == b"1"
            try:
                code = running.wait(limits.seconds)
            except subprocess.TimeoutExpired:
                return Ran("", False, f"took more than {limits.seconds:g} s")
        printed, said = _read(output, limits), _read(errors, limits)
        if "child-pid" not in _status(status) or not has_begun:
            raise _broken(said.strip() or f"it ended with code {code}")
    if code == 0 and printed.endswith(mark):
        return Ran(printed.removesuffix(mark), True)
    problem = _GONE.get(code, (said.strip().splitlines() or ["it left early"])[-1])
    return Ran(printed + said, False, problem[:200])


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has ended behind the block, and with it all that is within its walls."""
    with process:
        try:
            yield process
        finally:
            process.kill()


def _broken(why: str) -> UserError:
    return UserError(
        f"Code cannot be run here: {why[-_SAID:]}. If namespaces are what is lacking, have them "
        "allowed to users (sysctl kernel.unprivileged_userns_clone=1); or leave the reward 'code' "
        "out."
    )


def _put(file: IO[bytes], text: str) -> None:
    file.write(text.encode(errors="surrogatepass"))  # which Python refuses then, as it should
    file.seek(0)


def _read(file: IO[bytes], limits: Limits) -> str:
    file.seek(0)
    return file.read(limits.output).decode(errors="replace")


def _status(file: IO[bytes]) -> dict[str, int]:
    """What bubblewrap tells of the process within the walls, if there came to be one."""
    file.seek(0)
    told: dict[str, int] = {}
    for line in file.read().splitlines():
        told |= json.loads(line)
    return told


def _limited(limits: Limits) -> Iterator[str]:
    """The command that sets the kernel's limits; of util-linux, which every Linux has.

    It runs within the walls, where the user's other processes do not count.
    """
    yield "prlimit"
    yield f"--cpu={int(limits.seconds) + 1}"
    yield f"--as={limits.memory}"
    yield f"--fsize={limits.output}"
    yield f"--nproc={limits.processes}"
    yield "--nofile=256"
    yield "--core=0"


def _walls(limits: Limits, root: bool, status: int, source: int, begin: int) -> Iterator[str]:
    """The command that makes the walls; the numbers are of open files.

    Args:
        limits: of memory.
        root: whether it is root's, within a namespace of users that is there; else it makes one.
        status, source, begin: what it tells, the program, and what begins that.
    """
    wrap = shutil.which("bwrap")
    if wrap is None:
        raise UserError(
            "Running code needs bubblewrap, which is not here: install it (apt-get install "
            "bubblewrap), or leave the reward 'code' out."
        )
    yield wrap
    if root:
        for kind in ("ipc", "pid", "net", "uts", "cgroup-try"):
            yield f"--unshare-{kind}"
        # To become another; what begins the program does so, and has none then.
        yield from ("--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")
    else:
        yield from ("--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL")
        yield from ("--uid", str(NOBODY), "--gid", str(NOBODY))
    yield from ("--hostname", "sandbox")
    yield from ("--die-with-parent", "--new-session", "--clearenv")
    yield from ("--json-status-fd", str(status))
    yield from ("--size", str(limits.memory), "--perms", "1777", "--tmpfs", "/tmp")
    for folder in _python_folders():  # behind /tmp, where an environment may lie
        for parent in reversed(Path(folder).parents[:-1]):  # which may be root's alone outside
            yield from ("--perms", "0755", "--dir", str(parent))
        yield from ("--ro-bind", folder, folder)
    for link in ("bin", "lib", "lib64"):
        if Path("/", link).is_symlink():
            yield from ("--symlink", f"usr/{link}", f"/{link}")
        elif Path("/", link).exists():
            yield from ("--ro-bind", f"/{link}", f"/{link}")
    for number, path in ((source, _PROGRAM), (begin, _BEGIN)):
        yield from ("--perms", "0444", "--ro-bind-data", str(number), path)
    yield from ("--proc", "/proc", "--dev", "/dev")
    yield from ("--size", str(limits.memory), "--perms", "1777", "--tmpfs", "/dev/shm")
    yield from ("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp", "--")


def _python_folders() -> Iterator[str]:
    """What Python itself needs to be read: the system's, and its own where it lies elsewhere.

    It may be reached by links, as from a home that is one: then both ways of naming it are there.
    """
    bases = Path(sysconfig.get_config_var("installed_base") or sys.base_prefix), Path(sys.prefix)
    seen = [Path("/usr")]
    for folder in (*(base.resolve() for base in bases), *bases):
        if not any(folder.is_relative_to(there) for there in seen):
            seen.append(folder)
    yield from map(str, seen)
