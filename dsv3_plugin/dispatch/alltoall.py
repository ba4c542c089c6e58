"""Upstream's all-to-all between expert-parallel ranks, for overlapped pairs.

Inside a pair the exchange of one micro-batch runs while the other computes
(`distributed/overlap.py`). Upstream's autograd function waits for its exchange where it stands;
this one starts it and lets the other side compute. Outside a pair it does what upstream's does.
"""

from typing import Any

import torch

from dsv3_plugin.distributed.overlap import wait


class AllToAll(torch.autograd.Function):
    """Takes the place of `megatron.core.tensor_parallel.mappings._AllToAll`, same arguments."""

    @staticmethod
    def forward(
        ctx: Any,
        group: Any,
        rows: torch.Tensor,
        receive: list[int] | None,
        send: list[int] | None,
        use_nccl_stream: bool = False,
    ) -> torch.Tensor:
        """Exchange `rows`; `receive` and `send` count them per rank, None for equal parts."""
        ctx.group, ctx.receive, ctx.send = group, receive, send
        if group.size() == 1:
            return rows
        rows = rows.contiguous()
        count = rows.shape[0] if receive is None else int(sum(receive))
        received = rows.new_empty(count, *rows.shape[1:])
        work = torch.distributed.all_to_all_single(
            received, rows, receive, send, group=group, async_op=True
        )
        wait(work)
        return received

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        """The same exchange the other way."""
        return None, AllToAll.apply(ctx.group, gradient, ctx.send, ctx.receive), None, None, None
