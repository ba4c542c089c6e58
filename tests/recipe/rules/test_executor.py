"""What our own executor of pipeline schedules cannot run together with."""

import pytest

from tests.recipe.piped import PIPED
from tests.recipe.refused import refusal


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["pipeline.schedule=zbv", "megatron_args={cuda-graph-impl: local}"],
            "graphs (cuda-graph-impl), since its order changes per step: leave it out, or set "
            "pipeline.schedule to 1f1b or interleaved, which upstream runs.",
        ),
        (
            ["pipeline.executor=ours", "megatron_args={enable_cuda_graph: true}"],
            "changes per step: leave it out, or set pipeline.executor to upstream.",
        ),
        (
            ["pipeline.schedule=zbv", "megatron_args={--defer-embedding-wgrad-compute: true}"],
            "cannot defer the embedding's weight gradient",
        ),
        (
            ["pipeline.schedule=zbv", "megatron_args={overlap-grad-reduce: true}"],
            "cannot overlap the data-parallel reduction",
        ),
        (
            ["pipeline.schedule=zbv", "megatron_args={overlap-moe-expert-parallel-comm: true}"],
            "overlaps the experts' communication by itself",
        ),
        (
            ["pipeline.schedule=zbv", "megatron_args={delay_wgrad_compute: true}"],
            "puts off weight gradients by itself",
        ),
        (
            ["pipeline.schedule=zbv", "megatron_args={variable-seq-lengths: true}"],
            "sends tensors of one shape",
        ),
        (
            ["pipeline.schedule=zbv", "megatron_args={cuda-graph-scope: [attn]}"],
            "cannot run under CUDA graphs (cuda-graph-scope)",
        ),
        (
            ["pipeline.schedule=zbv", "parallel.tensor=2", "parallel.processes=8"],
            "sends whole sequences between stages, and tensor parallelism divides them",
        ),
    ],
)  # fmt: skip
def test_what_the_executor_cannot_run_with(overrides, sentence):
    assert sentence in refusal("pretrain/tiny", [*PIPED, *overrides])
