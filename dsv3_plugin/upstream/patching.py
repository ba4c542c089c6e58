"""Replacing symbols of Megatron: what a patch is, applying rows of them, putting upstream back.

The one table of patches is made of the rows that rooms keep beside their replacements, in a file
`patches.py` each (`PATCHES`); `dsv3_plugin.register()` applies them all, twice is harmless, and
`unregister()` puts upstream back. The rows are written for one version of megatron-core: with
another, they are refused, and the sentence lists what has to be checked.
"""

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dsv3_plugin.errors import UserError
from dsv3_plugin.upstream import cpu_host
from dsv3_plugin.upstream.replace import Replacer

MEGATRON_CORE = "0.19.2"


@dataclass(frozen=True)
class Patch:
    """One replaced symbol of upstream.

    Attributes:
        targets: every `module:attribute` where the symbol stands (a from-import makes copies).
        replacement: what takes its place.
        reason: why configuration or a subclass does not reach.
        test: the test that fails without it.
        wraps: the replacement is called with the original and returns what takes its place.
        cpu_only: needed on the CPU host alone.
        of_te: the symbol is Transformer Engine's, which need not be installed.
        fills_in: the symbol comes with a library that may be absent; where it is there, it stays.
    """

    targets: tuple[str, ...]
    replacement: Callable[..., Any]
    reason: str
    test: str
    wraps: bool = False
    cpu_only: bool = False
    fills_in: bool = False
    of_te: bool = False

    @property
    def name(self) -> str:
        """Where the replacement lies."""
        return f"{self.replacement.__module__}:{self.replacement.__qualname__}"


# What is replaced belongs to the process, as upstream's modules do.
_replacer = Replacer()


def apply(patches: Sequence[Patch]) -> None:
    """Apply rows of the table to this process. Those applied already stay as they are.

    Raises:
        UserError: another megatron-core than the one the rows are written for.
    """
    check_version(importlib.metadata.version("megatron-core"), patches)
    for patch in patches:
        if patch.cpu_only and not cpu_host.is_enabled():
            continue
        if patch.of_te and not _has_te():
            continue
        for target in patch.targets:
            if patch.wraps:
                _replacer.wrap(target, patch.replacement)
            elif patch.fills_in:
                _replacer.fill_in(target, patch.replacement)
            else:
                _replacer.set(target, patch.replacement)


def _has_te() -> bool:
    """Whether Transformer Engine works here, as upstream found out when it was imported."""
    from megatron.core.extensions.transformer_engine import HAVE_TE  # late: see cpu_host.enable

    return HAVE_TE


def check_version(installed: str, patches: Sequence[Patch]) -> None:
    """Refuse a megatron-core that the rows were not written for.

    Raises:
        UserError: with the list of symbols an upgrade has to check.
    """
    if installed != MEGATRON_CORE:
        symbols = ", ".join(target for patch in patches for target in patch.targets)
        raise UserError(
            f"megatron-core {installed} is installed, and the patches are written for "
            f"{MEGATRON_CORE}: install that version, or check each of {symbols}."
        )


def unregister() -> None:
    """Put upstream back as it was installed."""
    _replacer.restore()


def is_registered() -> bool:
    """Whether anything of upstream is replaced now."""
    return _replacer.active
