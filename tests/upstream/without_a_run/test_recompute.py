"""What upstream/ replaces of recomputation."""

import torch
from megatron.core import tensor_parallel
from megatron.core.tensor_parallel import random

import dsv3_plugin
from dsv3_plugin.upstream.extension_folder import extension_folder
from tests.upstream.without_a_run.covering import both, of


def test_what_upstream_recomputes_without_its_output_is_computed_again():
    dsv3_plugin.register()
    linear, x = torch.nn.Linear(4, 4), torch.randn(3, 4, requires_grad=True)
    again = tensor_parallel.CheckpointWithoutOutput()
    hidden = again.checkpoint(linear, x)
    out = hidden * hidden
    again.discard_output_and_register_recompute(out)
    out.sum().backward()
    expected = torch.autograd.grad((linear(x) ** 2).sum(), x)[0]
    torch.testing.assert_close(x.grad, expected)


@of("megatron.core.tensor_parallel.random:_get_share_storage")
def test_what_is_recomputed_is_seen_by_all_that_was_kept():
    def seen() -> list[torch.Tensor]:
        kept = torch.zeros(4, 3)
        views = [kept.view(12), kept[1:]]
        kept.untyped_storage().resize_(0)
        random._get_share_storage()(kept, torch.arange(12.0).view(4, 3))
        return [kept, *views]

    with extension_folder():  # where it is compiled for all tests; upstream keeps what it has
        random._get_share_storage()
    before, after = both(seen)
    assert all(map(torch.equal, before, after))
