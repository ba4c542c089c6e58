"""Number formats, and what only one of the two backends can compute."""

from collections.abc import Iterator

from dsv3_plugin.recipe.fitting import multiples
from dsv3_plugin.recipe.schema import Recipe


def precision(recipe: Recipe) -> Iterator[str]:
    """FP8 and BF16 moments need what computes them."""
    wanted = recipe.precision
    if recipe.backend == "local" and wanted.fp8 is not None:
        yield "precision.fp8 needs backend: transformer_engine"
    if recipe.host == "cpu" and recipe.backend == "transformer_engine":
        yield "backend: transformer_engine needs a GPU; with host: cpu say backend: local"
    if wanted.fp8 is not None and wanted.dtype != "bf16":
        yield "precision.fp8 needs precision.dtype: bf16"
    if wanted.swiglu_input is not None:
        if recipe.backend == "local":
            yield "precision.swiglu_input: fp8 needs backend: transformer_engine"
        if wanted.dtype != "bf16":
            yield "precision.swiglu_input: fp8 needs precision.dtype: bf16"
    if wanted.moments == "bf16":
        if not recipe.parallel.zero1:
            yield "precision.moments: bf16 needs parallel.zero1: true"
        if recipe.backend == "local":
            yield "precision.moments: bf16 needs backend: transformer_engine"


def torch_backend(recipe: Recipe) -> Iterator[str]:
    """What only Transformer Engine can do is not asked of torch."""
    if recipe.backend != "local" and recipe.host != "cpu":
        return
    if "moe_act" in recipe.recompute:
        # Upstream recomputes it around Transformer Engine's grouped matrix product alone.
        yield (
            "recompute: moe_act needs backend: transformer_engine; with backend: local leave it "
            "out, or recompute moe, which is the whole expert layer"
        )
    if recipe.model.num_moe_experts is None:
        return
    row = {"fp32": 4, "bf16": 8}[recipe.precision.dtype]  # of 16 bytes, see model/experts.py
    for name in ("hidden_size", "moe_ffn_hidden_size"):
        if (width := getattr(recipe.model, name)) % row:
            yield (
                f"model.{name} {width} is not a multiple of {row}, which the grouped matrix "
                f"products of backend: local need in {recipe.precision.dtype}: take "
                f"{multiples(width, row)}"
            )
