"""Where this project's processes compile what upstream has in C++, so that a killed one harms none.

torch keeps the processes of a node apart there by a file that the first makes, and removes when it
has compiled; the others wait for as long as the file is there. If the first is killed in that
minute, the file stays, and every later run on the node waits for ever.
"""

import contextlib
import fcntl
import os
import platform
import socket
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.cpp_extension import get_default_build_root

_ROOT = "TORCH_EXTENSIONS_DIR"


@contextlib.contextmanager
def extension_folder() -> Iterator[Path]:
    """torch compiles extensions in a folder of this node's, on which nobody waits in vain.

    One process at a time has it, by a lock that ends with the process, however that ends; so what
    lies there of torch's own files was left by one that was killed, and is removed.

    Raises:
        OSError: the folder cannot be made, or its file system has no locks.
    """
    given = os.environ.get(_ROOT)
    # Shared homes may have locks that other nodes do not see.
    built_for = f"{socket.gethostname()}_py{platform.python_version()}_torch{torch.__version__}"
    folder = Path(given or get_default_build_root()) / "dsv3_plugin" / built_for
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "in_use").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for left in folder.glob("*/lock"):
            left.unlink()
        os.environ[_ROOT] = str(folder)
        try:
            yield folder
        finally:
            if given is None:
                del os.environ[_ROOT]
            else:
                os.environ[_ROOT] = given
