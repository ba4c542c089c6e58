"""What data/ replaces of upstream, and why: its rows of the table of patches."""

from dsv3_plugin.data import datasets
from dsv3_plugin.upstream.patching import Patch

PATCHES: tuple[Patch, ...] = (
    Patch(
        targets=("megatron.core.datasets.utils:compile_helpers",),
        replacement=datasets.compile_helpers,
        reason="the wheel ships the compiled data helper, but not the Makefile that would build it",
        test="tests/data/test_datasets.py",
        wraps=True,
    ),
)
