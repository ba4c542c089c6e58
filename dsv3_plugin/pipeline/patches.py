"""What pipeline/ replaces of upstream, and why: its rows of the table of patches."""

from dsv3_plugin.pipeline import executor
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
)
