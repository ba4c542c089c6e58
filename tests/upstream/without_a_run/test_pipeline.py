"""What pipeline/ replaces."""

import contextlib
from unittest import mock

import torch
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.multi_token_prediction import MTPLossAutoScaler
from megatron.training import training

from tests.upstream.without_a_run.covering import both, of


@of("megatron.core.pipeline_parallel.schedules:get_forward_backward_func")
def test_the_schedule_is_upstreams_choice():
    sizes = [(1, None), (2, None), (4, 2)]
    before, after = both(
        lambda: [training.get_forward_backward_func(pp_size=p, vp_size=v) for p, v in sizes]
    )
    assert [f.__name__ for f in before] == [
        "forward_backward_no_pipelining",
        "forward_backward_pipelining_without_interleaving",
        "forward_backward_pipelining_with_interleaving",
    ]
    assert after == before


@of(
    "megatron.core.transformer.moe.moe_utils:MoEAuxLossAutoScaler.set_loss_scale",
    "megatron.core.transformer.multi_token_prediction:MTPLossAutoScaler.set_loss_scale",
)
def test_the_scale_of_a_loss_is_the_last_that_was_set():
    scalers = moe_utils.MoEAuxLossAutoScaler, MTPLossAutoScaler

    def scales() -> list[float]:
        with contextlib.ExitStack() as stack:
            for scaler in scalers:
                stack.enter_context(
                    mock.patch.object(scaler, "main_loss_backward_scale", torch.tensor(1.0))
                )
                for scale in (2.0, 3.0):
                    scaler.set_loss_scale(torch.tensor(scale))
            return [float(scaler.main_loss_backward_scale) for scaler in scalers]

    assert both(scales) == ([3.0, 3.0], [3.0, 3.0])
