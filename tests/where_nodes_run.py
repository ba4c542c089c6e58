"""On which streams autograd runs what, asked of whoever answers for torch.cuda.

`tests.streams` says it of CPU tensors by a rule. Run as a program, under the CUDA runtime of a
rehearsal, this asks torch's own engine, on fake tensors.
"""

import json
import os
from typing import Any

import torch


class _Noting(torch.autograd.Function):
    """Twice its input; notes where its backward runs, in which a part is computed again."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, note: Any) -> torch.Tensor:
        ctx.note = note
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.note("backward")
        with torch.enable_grad():
            again = torch.ones_like(gradient).requires_grad_()
            product = again * 2
            product.register_hook(lambda _: ctx.note("backward of what is computed again"))
            product.backward(gradient)
        return again.grad, None


def where_nodes_run() -> list[tuple[str, str]]:
    """What ran where, in order."""
    main, forward, backward = (
        torch.cuda.current_stream(),
        torch.cuda.Stream(),
        torch.cuda.Stream(),
    )
    names = {main.stream_id: "main", forward.stream_id: "forward's", backward.stream_id: "caller's"}
    seen: list[tuple[str, str]] = []

    def note(what: str) -> None:
        seen.append((what, names[torch.cuda.current_stream().stream_id]))

    weight = torch.nn.Parameter(torch.ones(4, device="cuda"))
    # As DistributedDataParallel does when it is made.
    accumulate = weight.expand_as(weight).grad_fn.next_functions[0][0]
    accumulate.register_hook(lambda *_: note("AccumulateGrad"))
    activation = torch.ones(4, device="cuda", requires_grad=True)
    with torch.cuda.stream(forward):
        output = _Noting.apply(weight * activation, note).sum()
        activation.register_hook(lambda _: note("gradient of the activation"))
    with torch.cuda.stream(backward):
        output.backward()
        note("what follows")
    return sorted(seen)


if __name__ == "__main__":
    from torch._subclasses.fake_tensor import FakeTensorMode

    torch.cuda._lazy_init = lambda: None
    with FakeTensorMode():
        print(json.dumps(where_nodes_run()), flush=True)
    os._exit(0)  # the engine's threads do not end well under this runtime
