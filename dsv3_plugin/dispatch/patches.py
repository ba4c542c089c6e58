"""What dispatch/ replaces of upstream, and why: its rows of the table of patches."""

from dsv3_plugin.dispatch import alltoall
from dsv3_plugin.upstream.patching import Patch

PATCHES: tuple[Patch, ...] = (
    Patch(
        targets=("megatron.core.tensor_parallel.mappings:_AllToAll",),
        replacement=alltoall.AllToAll,
        reason="upstream's exchange blocks; in an overlapped pair the partner computes meanwhile",
        test="tests/distributed/test_overlap.py",
    ),
)
