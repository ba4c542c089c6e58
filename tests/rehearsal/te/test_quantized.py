"""Functions of TE's library on tensors as they are gathered from tensor-parallel ranks."""

import torch

from dsv3_plugin.rehearsal.te.kernels import Kernel
from dsv3_plugin.rehearsal.te.library import functions


def test_what_ranks_gathered_one_after_the_other_comes_to_lie_side_by_side():
    launched: list[Kernel] = []
    swap = functions(launched.append)["swap_first_dims"]
    gathered = torch.empty(2, 56, 2048, dtype=torch.uint8)  # ranks, rows, columns of each
    made = swap(gathered, out=None)
    assert made.shape == (56, 2, 2048)
    assert made.dtype == torch.uint8
    room = torch.empty(56, 2, 2048, dtype=torch.uint8)
    assert swap(gathered, out=room) is room
    assert [kernel.name for kernel in launched] == ["swap_first_dims", "swap_first_dims"]
    assert launched[1].writes[0] is room
