"""Recomputing norms and MLA up-projections where upstream's ways need what is not installed.

`CheckpointWithoutOutput(fp8=False)`, as upstream's layers make it, asks "is fp8 not None" and then
for TE's FP8 state, which does not exist without TE: a NameError in the first forward. Where TE is,
upstream's answer stands: what is recomputed then has to look at TE's state.

What was computed again is put behind the tensor that others have kept without a copy, by a function
in C++ that upstream compiles in the first backward, on every rank. Without ninja, a compiler or a
folder to build in, that ends the run. Bytes can be copied from one storage to the other all the
same; that is a pass over memory more, so it is said. And a run that is killed while it compiles
makes all that follow it wait for ever: see `extension_folder`.
"""

import functools
import subprocess
import warnings
from collections.abc import Callable
from typing import Any

from megatron.core.tensor_parallel import random
from torch import Tensor

from dsv3_plugin.upstream.extension_folder import extension_folder

ShareStorage = Callable[[Tensor, Tensor], None]
"""Gives the first tensor's storage the bytes of the second's; views of the first see them too."""


def checkpoint_without_output_init(original: Callable[..., None]) -> Callable[..., None]:
    """Wraps `tensor_parallel.random.CheckpointWithoutOutput.__init__`: no FP8 is no FP8."""

    @functools.wraps(original)
    def init(self: Any, fp8: Any = False) -> None:
        original(self, fp8=fp8 if random.HAVE_TE else fp8 or None)

    return init


def get_share_storage(original: Callable[[], ShareStorage]) -> Callable[[], ShareStorage]:
    """Wraps `tensor_parallel.random._get_share_storage`: a copy where nothing can be compiled.

    Where it can, that takes a minute on a node's first run.
    """

    @functools.cache
    def found() -> ShareStorage:
        try:
            with extension_folder():
                return original()
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            reason = str(error).strip().split("\n")[0]
            warnings.warn(
                f"what is recomputed is copied once more, since upstream's function that shares "
                f"its memory cannot be compiled here: {reason}",
                stacklevel=3,
            )
            return copy_storage

    @functools.wraps(original)
    def get() -> ShareStorage:
        return found()

    return get


def copy_storage(kept: Tensor, again: Tensor) -> None:
    """What upstream's `share_storage` does, by copying; autograd sees no change of `kept`."""
    bytes_kept, bytes_again = kept.untyped_storage(), again.untyped_storage()
    bytes_kept.resize_(bytes_again.nbytes())
    bytes_kept.copy_(bytes_again)
