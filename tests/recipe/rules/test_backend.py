"""Number formats, and the backend that computes them."""

import pytest

from tests.recipe.refused import refusal


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            [
                "backend=local",
                "precision={dtype: bf16, fp8: {recipe: blockwise}, moments: bf16}",
                "parallel.zero1=true",
                "recompute=[moe_act]",
            ],
            "precision.fp8, precision.moments: bf16 and recompute: moe_act need backend: "
            "transformer_engine; with backend: local take precision.fp8=null, "
            "precision.moments=fp32 and no moe_act in recompute (moe is the whole expert layer).",
        ),
        (["backend=transformer_engine"], "needs a GPU; with host: cpu say backend: local"),
        (["precision.moments=bf16"], "precision.moments: bf16 needs parallel.zero1"),
        (
            ["precision.swiglu_input=fp8", "precision.dtype=bf16"],
            "swiglu_input: fp8 needs backend: transformer_engine",
        ),
        (["model.hidden_size=62"], "backend: local need in fp32: take 60 or 64."),
        (
            [
                "precision.dtype=bf16",
                "model.moe_ffn_hidden_size=44",
                "model.moe_shared_expert_intermediate_size=44",
            ],
            "moe_ffn_hidden_size 44 is not a multiple of 8, which the grouped matrix products",
        ),
    ],
)
def test_what_the_backend_cannot_compute(overrides, sentence):
    assert sentence in refusal("pretrain/tiny", overrides)
