"""A stranger's Python in a process that sees no files of ours, no network and no other process.

bubblewrap (github.com/containers/bubblewrap) makes the walls out of Linux's namespaces, as an
ordinary user; the kernel's limits bound time, memory, files and processes.
"""

import secrets
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dsv3_plugin.errors import UserError


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: by the clock, and of processor time.
        memory: bytes of each process's address space, and of all files it writes.
        output: bytes of what it prints.
        processes: at once; the kernel holds everybody to it but root.
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


_NOBODY = "65534"
_GONE = {137: "it was killed", 152: "it took too much processor time"}


def ran(program: str, given: str = "", limits: Limits | None = None) -> Ran:
    """Run a program, and whatever it starts, to its end.

    Args:
        program: Python.
        given: its standard input.
        limits: of it.

    Raises:
        UserError: bubblewrap is not here, or the kernel lets no namespaces be made.
    """
    limits = limits or Limits()
    # A program that leaves early by exit code 0 has not come to its end.
    end = secrets.token_hex(16)
    source = f"{program}\n\nprint('\\n{end}')\n"
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            done = subprocess.run(
                [*_walls(limits), *_limited(limits), sys.executable, "-I", "-c", source],
                input=given.encode(),
                stdout=output,
                stderr=errors,
                timeout=limits.seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Ran("", False, f"took more than {limits.seconds:g} s")
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read(limits.output).decode(errors="replace"))
    printed, said = texts
    if said.startswith("bwrap: "):
        raise UserError(
            f"Code cannot be run here: {said.strip()}. Have namespaces allowed to users (sysctl "
            "kernel.unprivileged_userns_clone=1) if it is those, or leave the reward 'code' out."
        )
    before, marker, _ = printed.rpartition(f"\n{end}\n")
    if done.returncode == 0 and marker:
        return Ran(before, True)
    problem = _GONE.get(done.returncode, (said.strip().splitlines() or ["it left early"])[-1])
    return Ran(printed + said, False, problem[:200])


def _limited(limits: Limits) -> Iterator[str]:
    """The command that sets the kernel's limits; of util-linux, which every Linux has.

    It runs within the walls, where the user's other processes do not count.
    """
    yield "prlimit"
    yield f"--cpu={int(limits.seconds) + 1}"
    yield f"--as={limits.memory}"
    yield f"--fsize={limits.output}"
    yield f"--nproc={limits.processes}"
    yield "--core=0"


def _walls(limits: Limits) -> Iterator[str]:
    """The command that makes the walls."""
    wrap = shutil.which("bwrap")
    if wrap is None:
        raise UserError(
            "Running code needs bubblewrap, which is not here: install it (apt-get install "
            "bubblewrap), or leave the reward 'code' out."
        )
    yield from (wrap, "--unshare-all", "--unshare-user", "--disable-userns")
    yield from ("--uid", _NOBODY, "--gid", _NOBODY, "--cap-drop", "ALL", "--hostname", "sandbox")
    yield from ("--die-with-parent", "--new-session", "--clearenv")
    yield from ("--size", str(limits.memory), "--tmpfs", "/tmp")
    for folder in _python_folders():  # behind /tmp, where an environment may lie
        yield from ("--ro-bind", folder, folder)
    for link in ("bin", "lib", "lib64"):
        if Path("/", link).is_symlink():
            yield from ("--symlink", f"usr/{link}", f"/{link}")
        elif Path("/", link).exists():
            yield from ("--ro-bind", f"/{link}", f"/{link}")
    yield from ("--proc", "/proc", "--dev", "/dev", "--chdir", "/tmp", "--")


def _python_folders() -> Iterator[str]:
    """What Python itself needs to be read: the system's, and its own where it lies elsewhere."""
    yield "/usr"
    base = Path(sysconfig.get_config_var("installed_base") or sys.base_prefix).resolve()
    for folder in dict.fromkeys((base, Path(sys.prefix).resolve())):
        if not folder.is_relative_to("/usr"):
            yield str(folder)
