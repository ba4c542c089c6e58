"""What pipeline/ replaces of upstream, and why: its rows of the table of patches."""

from dsv3_plugin.pipeline import executor, loss_scale
from dsv3_plugin.upstream.patching import Patch

PATCHES: tuple[Patch, ...] = (
    Patch(
        targets=(
            "megatron.core.pipeline_parallel.schedules:get_forward_backward_func",
            "megatron.core.pipeline_parallel:get_forward_backward_func",
            "megatron.training.training:get_forward_backward_func",
        ),
        replacement=executor.choose_executor,
        reason="upstream chooses among its own schedules by pipeline size alone",
        test="tests/pipeline/test_executor.py",
        wraps=True,
    ),
    Patch(
        targets=("megatron.core.transformer.moe.moe_utils:MoEAuxLossAutoScaler.set_loss_scale",),
        replacement=loss_scale.set_loss_scale,
        reason="every forward sets what every backward reads; in a pair nothing orders the two",
        test="tests/pipeline/test_streams.py",
        wraps=True,
    ),
    Patch(
        targets=(
            "megatron.core.transformer.multi_token_prediction:MTPLossAutoScaler.set_loss_scale",
        ),
        replacement=loss_scale.set_loss_scale,
        reason="as that of the balance loss",
        test="tests/pipeline/test_streams.py",
        wraps=True,
    ),
)
