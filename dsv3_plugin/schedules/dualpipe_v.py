"""DualPipeV: DualPipe cut in half and folded into a V (Sea AI Lab's "Cut-in-half").

Rank r holds stages r and 2P-1-r of one model: no second copy of the parameters, half as many
devices for the same number of stages, any M >= 2P. The order is that of DeepSeek's published
DualPipeV and of torch.distributed.pipelining's ScheduleDualPipeV.
"""

from dsv3_plugin.errors import UserError
from dsv3_plugin.schedules.actions import Schedule
from dsv3_plugin.schedules.dualpipe import eight_steps


def dualpipe_v(pp: int, micro_batches: int) -> Schedule:
    """Stages r and 2P-1-r on rank r; needs M >= 2P, odd or even."""
    if micro_batches < 2 * pp:
        raise UserError(
            f"dualpipe_v needs at least 2 x P = {2 * pp} micro-batches, not {micro_batches}; "
            "use search"
        )
    return Schedule(
        "dualpipe_v",
        tuple(
            eight_steps(rank, pp, micro_batches, near=(rank, 0), far=(2 * pp - 1 - rank, 0))
            for rank in range(pp)
        ),
    )
