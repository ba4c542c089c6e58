"""A namespace of users in which root is another root, and can become `nobody`.

The kernel holds each user to the processes that `RLIMIT_NPROC` allows, and root, as the whole
machine knows it, to none. bubblewrap maps the user that it makes to the one who called it, so that
root's programs stay root's there. Here root and `nobody` are both in the namespace, which is made
before bubblewrap is begun: within its walls a program is then given to `nobody`, of whom the kernel
counts processes in this namespace alone.
"""

import sys
from collections.abc import Iterator

NOBODY = 65534
"""The user and the group."""

_IN_IT = f"""
import os, sys
ready, made = os.pipe()
if not os.fork():
    os.read(ready, 1)
    for kind in ("gid", "uid"):
        with open(f"/proc/{{os.getppid()}}/{{kind}}_map", "w") as file:
            file.write("0 0 1\\n{NOBODY} {NOBODY} 1\\n")
    os._exit(0)
os.unshare(os.CLONE_NEWUSER)
os.write(made, b"1")
if os.wait()[1]:
    sys.exit("root cannot be mapped into a namespace of users")
with open("/proc/sys/user/max_user_namespaces", "w") as file:
    file.write("0")
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Only one who is outside may say who is in it, root and another; no further one is made inside."""


def as_root_of_two() -> Iterator[str]:
    """The words before a command, a path with its arguments, that has it begin there; for root."""
    yield from (sys.executable, "-I", "-S", "-c", _IN_IT)
