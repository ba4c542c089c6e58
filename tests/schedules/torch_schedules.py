"""torch.distributed.pipelining as an oracle: its schedules as text, and its own checks."""

from types import SimpleNamespace

from torch import nn
from torch.distributed.pipelining import schedules as upstream


def build(name: str, pp: int, vp: int, micro_batches: int):
    """torch's schedule object of a class name, on stand-ins for its stages."""
    stages = [
        SimpleNamespace(
            num_stages=pp * vp,
            group_size=pp,
            group_rank=0,
            group=None,
            stage_index=chunk * pp,
            is_last=False,
            submod=nn.Identity(),
        )
        for chunk in range(vp)
    ]
    return getattr(upstream, name)(stages, micro_batches, loss_fn=lambda *_: None)


def as_text(rows) -> list[list[str]]:
    """Rows of torch's actions as text, idle cells empty."""
    ordered = [rows[rank] for rank in sorted(rows)] if isinstance(rows, dict) else rows
    return [["" if cell is None else str(cell) for cell in row] for row in ordered]


def runs(rows: list[list[str]], stage_ranks: dict[int, int], micro_batches: int) -> bool:
    """torch's verdict on a schedule in text: complete, in order, and not deadlocked."""
    actions = {
        rank: [upstream._Action.from_str(cell) for cell in row if cell]
        for rank, row in enumerate(rows)
    }
    num_stages = len(stage_ranks)
    try:
        upstream._validate_schedule(actions, len(rows), num_stages, micro_batches)
        upstream._add_send_recv(actions, stage_ranks.__getitem__, num_stages)
    except AssertionError:
        return False
    return True


def runs_with_transfers(rows: list[list[str]], stage_ranks: dict[int, int]) -> bool:
    """torch's verdict on rows that hold sends and receives: its dry run gets to the end.

    The dry run knows no overlapped pairs, so their halves follow each other here.
    """
    actions = {}
    for rank, row in enumerate(rows):
        parsed = [upstream._Action.from_str(cell) for cell in row]
        actions[rank] = [part for action in parsed for part in action.sub_actions or (action,)]
    try:
        upstream._simulate_comms_compute(actions, stage_ranks.__getitem__, len(stage_ranks))
    except ValueError:
        return False
    return True
