"""Triton's kernels, of TE and of upstream, without launching them.

Their callers make the results in Python beforehand, so a launch is all that there is to leave out:
TE's permutation and cross-entropy, upstream's fused rotation of MLA.
"""

from typing import Any

from dsv3_plugin.rehearsal.te.kernels import Kernel, OnKernel, dense


def leave_out_launches(on_kernel: OnKernel) -> None:
    """Let a launch say what it was given, for the rest of this process.

    A kernel does not tell what it reads and what it writes: every tensor counts once, as read.
    """
    from triton.runtime.autotuner import Autotuner, Heuristics
    from triton.runtime.jit import JITFunction

    def run(self: Any, *args: Any, grid: Any = None, warmup: bool = False, **kwargs: Any) -> None:
        function = self
        while hasattr(function, "fn"):
            function = function.fn
        on_kernel(Kernel(function.__name__, (*dense([*args, *kwargs.values()]),), ()))

    for kind in (JITFunction, Autotuner, Heuristics):
        kind.run = run
