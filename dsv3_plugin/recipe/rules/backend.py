"""Number formats, and what only one of the two backends can compute."""

from collections.abc import Iterator

from dsv3_plugin.recipe.fitting import all_of, multiples
from dsv3_plugin.recipe.schema import Recipe


def transformer_engine(recipe: Recipe) -> Iterator[str]:
    """FP8, BF16 moments and recomputed activations of experts need Transformer Engine."""
    wanted, needs, without = recipe.precision, [], []
    if recipe.backend == "local":
        if wanted.fp8 is not None:
            needs, without = ["precision.fp8"], ["precision.fp8=null"]
        if wanted.swiglu_input is not None:
            needs.append("precision.swiglu_input: fp8")
            without.append("precision.swiglu_input=null")
        if wanted.moments == "bf16":
            needs.append("precision.moments: bf16")
            without.append("precision.moments=fp32")
    if _on_torch(recipe) and "moe_act" in recipe.recompute:
        # Upstream recomputes it around Transformer Engine's grouped matrix product alone.
        needs.append("recompute: moe_act")
        without.append("no moe_act in recompute (moe is the whole expert layer)")
    if needs:
        yield (
            f"{all_of(needs)} {'needs' if len(needs) == 1 else 'need'} backend: "
            f"transformer_engine; with backend: local take {all_of(without)}"
        )


def precision(recipe: Recipe) -> Iterator[str]:
    """Number formats go together."""
    wanted = recipe.precision
    if recipe.host == "cpu" and recipe.backend == "transformer_engine":
        yield "backend: transformer_engine needs a GPU; with host: cpu say backend: local"
    if wanted.dtype != "bf16":
        if wanted.fp8 is not None:
            yield "precision.fp8 needs precision.dtype: bf16"
        if wanted.swiglu_input is not None:
            yield "precision.swiglu_input: fp8 needs precision.dtype: bf16"
    if wanted.moments == "bf16" and not recipe.parallel.zero1:
        yield "precision.moments: bf16 needs parallel.zero1: true"


def torch_backend(recipe: Recipe) -> Iterator[str]:
    """Experts are as wide as torch's grouped products take them."""
    if recipe.model.num_moe_experts is None or not _on_torch(recipe):
        return
    row = {"fp32": 4, "bf16": 8}[recipe.precision.dtype]  # of 16 bytes, see model/experts.py
    for name in ("hidden_size", "moe_ffn_hidden_size"):
        if (width := getattr(recipe.model, name)) % row:
            yield (
                f"model.{name} {width} is not a multiple of {row}, which the grouped matrix "
                f"products of backend: local need in {recipe.precision.dtype}: take "
                f"{multiples(width, row)}"
            )


def _on_torch(recipe: Recipe) -> bool:
    return recipe.backend == "local" or recipe.host == "cpu"
