"""Megatron's interleaved 1F1B: V model chunks per rank, with or without overlapped pairs.

Rank r holds stages r, P+r, 2P+r, ... Micro-batches go through a chunk in groups (arXiv 2104.04473,
section 2.2). The order is that of megatron.core.pipeline_parallel.schedules
(`get_pp_rank_microbatches`, `get_schedule_table`): its group size must leave no last group smaller
than P, and with `overlap_moe_expert_parallel_comm` one more forward warms up so that every forward
and the backward beside it are independent and run as one overlapped pair.
"""

from dsv3_plugin.errors import UserError
from dsv3_plugin.schedules.actions import BACKWARD, FORWARD, Compute, Overlap, Schedule


def group_size(pp: int, micro_batches: int) -> int:
    """Smallest group of at least P micro-batches whose remainder is none or at least P (Megatron's
    `microbatch_group_size_per_vp_stage`, which leaves the choice to the user)."""
    if micro_batches < pp:
        raise UserError(
            f"interleaved needs at least as many micro-batches as ranks: {micro_batches} < {pp}; "
            "use 1f1b or search"
        )
    return next(
        size
        for size in range(pp, micro_batches + 1)
        if micro_batches % size == 0 or micro_batches % size >= pp
    )


def interleaved(pp: int, micro_batches: int, vp: int = 2, overlap: bool = False) -> Schedule:
    """`vp` chunks per rank; `overlap` pairs each steady forward with the backward beside it."""
    if vp < 2:
        raise UserError(f"interleaved needs at least 2 chunks per rank (--vp), not {vp}")
    size = group_size(pp, micro_batches)
    # (micro-batch, chunk) in the order a rank works through them; backwards mirror the chunks.
    order = [
        (m, chunk)
        for start in range(0, micro_batches, size)
        for chunk in range(vp)
        for m in range(start, min(start + size, micro_batches))
    ]
    rows = []
    for rank in range(pp):
        forwards = [Compute(chunk * pp + rank, FORWARD, m) for m, chunk in order]
        backwards = [Compute((vp - 1 - chunk) * pp + rank, BACKWARD, m) for m, chunk in order]
        warmup = min(2 * (pp - 1 - rank) + (vp - 1) * size + overlap, len(order))
        row = list(forwards[:warmup])
        for forward, backward in zip(forwards[warmup:], backwards, strict=False):
            row += [Overlap(forward, backward)] if overlap else [forward, backward]
        row += backwards[len(order) - warmup :]
        rows.append(tuple(row))
    name = f"interleaved v{vp}" + (" overlapped" if overlap else "")
    return Schedule(name, tuple(rows))
