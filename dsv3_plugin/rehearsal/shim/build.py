"""Compiles the CUDA runtime of a rehearsal (cudart.c, driver.c) once, and says how to preload it.

Without it a fake tensor on "cuda" cannot do a backward on a machine without a driver. It takes a C
compiler and no header of CUDA, once: what the cache holds serves without. Where it cannot be had,
torch's C++ takes the rehearsal's tensors for those of a device in Python (`python_device`).
"""

import atexit
import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from dsv3_plugin.errors import UserError
from dsv3_plugin.rehearsal.gpu import Gpu

_COMPILERS = ("cc", "gcc", "clang")
_SOURCES = Path(__file__).parent
_RUNTIME = "libcudart_rehearsal.so"
_DRIVER = "libcuda.so.1"
"""The driver's own name: whoever opens it by that gets what is loaded under it already."""
_LIBRARIES = {_RUNTIME: ("cudart.c",), _DRIVER: ("driver.c", f"-Wl,-soname,{_DRIVER}")}
_FLAGS = ("-O1", "-w", "-shared", "-fPIC")


@dataclass(frozen=True)
class Shim:
    """The compiled libraries.

    Attributes:
        folder: where both are.
    """

    folder: Path

    def environment(self, gpu: Gpu, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
        """The variables that start a process with the runtime, over those it inherits.

        The libraries are preloaded by their names, which the loader looks for in folders: a path
        in LD_PRELOAD itself ends at its first blank.
        """
        preloaded = inherited.get("LD_PRELOAD", "").split()
        folders = [folder for folder in [inherited.get("LD_LIBRARY_PATH", "")] if folder]
        return {
            "LD_PRELOAD": " ".join([_RUNTIME, _DRIVER, *preloaded]),
            "LD_LIBRARY_PATH": ":".join([str(self.folder), *folders]),
            "DSV3_REHEARSED_NAME": gpu.name,
            "DSV3_REHEARSED_MAJOR": str(gpu.capability[0]),
            "DSV3_REHEARSED_MINOR": str(gpu.capability[1]),
            "DSV3_REHEARSED_MEMORY": str(gpu.memory_bytes),
            "DSV3_REHEARSED_MULTIPROCESSORS": str(gpu.multiprocessors),
            "DSV3_REHEARSED_GPUS": str(gpu.per_node),
        }


def built_shim() -> Shim:
    """The runtime, compiled now if the user's cache does not hold it.

    Raises:
        UserError: it cannot be had here; one sentence says why.
    """
    if platform.system() != "Linux":
        raise UserError(
            f"a CUDA runtime is preloaded on Linux alone, and this is {platform.system()}"
        )
    if not _torch_has_cuda():
        raise UserError("torch is built without CUDA here")
    cached = [cache / f"cuda-shim-{_digest()}" for cache in _caches()]
    for built in cached:
        if _complete(built):
            return Shim(built)
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise UserError(f"no C compiler is here ({', '.join(_COMPILERS)})")
    for built in cached:
        with contextlib.suppress(OSError):
            built.parent.mkdir(parents=True, exist_ok=True)
            return Shim(_build(compiler, built))
    # Nowhere to keep it: it takes a tenth of a second, so this process makes its own.
    folder = Path(tempfile.mkdtemp(prefix="dsv3-cuda-shim-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _compile(compiler, folder)
    return Shim(folder)


def preloaded() -> bool:
    """Whether this process was started with the runtime."""
    return _RUNTIME in os.environ.get("LD_PRELOAD", "").split()


def _torch_has_cuda() -> bool:
    """Looked up, not imported."""
    torch = find_spec("torch")
    return (
        torch is not None
        and torch.origin is not None
        and (Path(torch.origin).parent / "lib" / "libtorch_cuda.so").exists()
    )


def _digest() -> str:
    """Of what decides whether a library serves here: sources, flags, machine, C library."""
    here = _LIBRARIES, _FLAGS, platform.machine(), platform.libc_ver()
    made_from = hashlib.sha256(repr(here).encode())
    for sources in _LIBRARIES.values():
        made_from.update((_SOURCES / sources[0]).read_bytes())
    return made_from.hexdigest()[:16]


def _caches() -> Iterator[Path]:
    """The user's cache folder, if the loader can use what lies there.

    It takes folders apart at colons and semicolons, expands dollars, and maps no library of a file
    system that is mounted without execution.
    """
    named = os.environ.get("XDG_CACHE_HOME", "")
    try:
        cache = Path(named) if os.path.isabs(named) else Path.home() / ".cache"
        lasting = next(folder for folder in [cache, *cache.parents] if folder.exists())
        may_execute = not os.statvfs(lasting).f_flag & os.ST_NOEXEC
    except (OSError, RuntimeError):  # no home
        return
    if may_execute and not set(":;$\n") & set(str(cache)):
        yield cache / "dsv3_plugin"


def _complete(built: Path) -> bool:
    return all((built / library).is_file() for library in _LIBRARIES)


def _build(compiler: str, built: Path) -> Path:
    """Compile beside the place and move there at once: several processes may do the same."""
    beside = Path(tempfile.mkdtemp(prefix=f".{built.name}.", dir=built.parent))
    try:
        _compile(compiler, beside)
        try:
            beside.rename(built)
        except OSError:
            if not _complete(built):  # else another process was faster
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return built


def _compile(compiler: str, folder: Path) -> None:
    for library, (source, *flags) in _LIBRARIES.items():
        command = [compiler, *_FLAGS, *flags, "-o", str(folder / library), str(_SOURCES / source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise UserError(
                f"{compiler} cannot compile a library here ({lines[0]}), which takes the headers "
                "of the C library"
            )
