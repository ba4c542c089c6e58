"""What dispatch/ replaces, and what upstream/ does of its all-to-all."""

import torch
from megatron.core import tensor_parallel
from megatron.core.transformer.moe import moe_utils

import dsv3_plugin
from tests.upstream.without_a_run.covering import both, of


@of("megatron.core.transformer.moe.moe_utils:maybe_move_tensor_to_cpu")
def test_a_tensor_on_the_cpu_stays_one_unless_numpy_is_asked_for():
    tensor = torch.arange(3)
    dsv3_plugin.register()
    move = moe_utils.maybe_move_tensor_to_cpu
    assert move(tensor) is tensor
    assert move(tensor, False, True) is tensor
    assert move(None, as_numpy=True) is None
    assert move([1, 2], as_numpy=True, record_stream=True) == [1, 2]
    assert move(tensor, as_numpy=True).tolist() == [0, 1, 2]


@of("megatron.core.tensor_parallel.mappings:_AllToAll")
def test_an_exchange_with_oneself_is_the_identity():
    group = torch.distributed.group.WORLD
    rows = torch.randn(4, 2, requires_grad=True)

    def exchanged() -> list[torch.Tensor]:
        out = tensor_parallel.all_to_all(group, rows, [4], [4])
        return [out.detach(), *torch.autograd.grad((out**2).sum(), rows)]

    before, after = both(exchanged)
    assert all(map(torch.equal, before, after))
