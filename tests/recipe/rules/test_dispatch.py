"""How tokens travel to their experts."""

import pytest

from tests.recipe.piped import PIPED
from tests.recipe.refused import refusal


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["dispatch.kind=deepep"], "dispatch.kind: deepep needs a GPU"),
        (["dispatch.precision=fp8"], "dispatch.precision: fp8 needs dispatch.kind: two_hop"),
        (
            ["dispatch.hide_shared_expert=true", "recompute=[shared_experts]"],
            "recompute: [shared_experts] as a whole: leave out one of them",
        ),
        (
            [*PIPED, "pipeline.schedule=zb1p", "dispatch.hide_shared_expert=true"],
            "on a CUDA stream of its own, which does not go together with weight gradients",
        ),
        (
            ["dispatch={kind: two_hop, ranks_per_node: 3}"],
            "dispatch.ranks_per_node 3 does not divide expert 2: set it to 1 or 2, or to a "
            "multiple of 2",
        ),
        (
            [
                "parallel={processes: 8, expert: 8}",
                "dispatch={ranks_per_node: 3}",
                "curves.batch_size=32",
            ],
            "does not divide expert 8: set it to 1, 2, 4 or 8, or to a multiple of 8",
        ),
    ],
)
def test_dispatch_that_cannot_be(overrides, sentence):
    assert sentence in refusal("pretrain/tiny", overrides)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["dispatch={kind: two_hop, ranks_per_node: 1}",
             "megatron_args={overlap-moe-expert-parallel-comm: true}"],
            "use dispatch.kind: alltoall, deepep or hybridep, or leave it out",
        ),
        (
            ["data.packing=whole", "megatron_args={overlap-moe-expert-parallel-comm: true}"],
            "tells routers nothing of the padding",
        ),
    ],
)  # fmt: skip
def test_dispatch_that_does_not_go_with_overlapped_layers(overrides, sentence):
    assert sentence in refusal("pretrain/tiny", [*PIPED, *overrides])
