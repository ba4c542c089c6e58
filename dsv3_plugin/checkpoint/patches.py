"""What checkpoint/ replaces of upstream, and why: its rows of the table of patches."""

from dsv3_plugin.checkpoint import restricted
from dsv3_plugin.upstream.patching import Patch

PATCHES: tuple[Patch, ...] = (
    Patch(
        targets=("torch:load",),
        replacement=restricted.load,
        reason="objects of a checkpoint are unpickled whatever they name, by callers that say so",
        test="tests/checkpoint/test_hostile.py",
        wraps=True,
    ),
    Patch(
        targets=("torch.distributed.checkpoint.default_planner:DefaultLoadPlanner.load_bytes",),
        replacement=restricted.load_bytes,
        reason="Transformer Engine unpickles the states of its layers, whatever they name",
        test="tests/checkpoint/test_restricted.py",
        wraps=True,
    ),
    Patch(
        targets=("torch.distributed.checkpoint.filesystem:FileSystemReader.read_metadata",),
        replacement=restricted.read_metadata,
        reason="the metadata of a checkpoint is unpickled, whatever it names",
        test="tests/checkpoint/test_hostile.py",
        wraps=True,
    ),
)
