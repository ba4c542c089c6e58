"""What our own executor of pipeline schedules cannot run together with."""

from collections.abc import Iterator

from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.schedules.registry import SCHEDULES

_NO_GRAPHS = "cannot run under CUDA graphs ({flag}), since its order changes per step"
_NO_OVERLAP = (
    "cannot overlap the data-parallel reduction ({flag}), which upstream starts at the input "
    "gradient, before the weight gradient is there"
)
_FLAGS = {
    "enable-cuda-graph": _NO_GRAPHS,
    "external-cuda-graph": _NO_GRAPHS,
    "cuda-graph-impl": _NO_GRAPHS,
    "cuda-graph-scope": _NO_GRAPHS,
    "cuda-graph-modules": _NO_GRAPHS,
    "overlap-moe-expert-parallel-comm": (
        "overlaps the experts' communication by itself, in pairs: leave out {flag}, which changes "
        "the order of upstream's schedule"
    ),
    "delay-wgrad-compute": (
        "puts off weight gradients by itself: leave out {flag}, which makes upstream's schedule "
        "compute them"
    ),
    "variable-seq-lengths": (
        "sends tensors of one shape, known beforehand ({flag}), since every sequence has "
        "data.seq_length tokens"
    ),
    "defer-embedding-wgrad-compute": (
        "cannot defer the embedding's weight gradient ({flag}), since the schedule itself "
        "places weight gradients"
    ),
    "overlap-grad-reduce": _NO_OVERLAP,
    "overlap-param-gather": _NO_OVERLAP,
}
"""Upstream's flag → why it cannot be given."""


def executor(recipe: Recipe) -> Iterator[str]:
    """Nothing is asked of our executor that only upstream's schedules do."""
    if recipe.executor != "ours":
        return
    what = f"pipeline.schedule: {recipe.pipeline.schedule} with executor ours"
    flags = recipe.passed_flags
    for flag, why in _FLAGS.items():
        if flags.get(flag) and flags[flag] != "none":
            out = "" if "leave out" in why else f": leave it out{_or_upstreams(recipe)}"
            yield f"{what} {why.format(flag=flag)}{out}"
    if recipe.parallel.tensor > 1 or flags.get("sequence-parallel"):
        yield (
            f"{what} sends whole sequences between stages, and tensor parallelism divides them "
            "(sequence-parallel): set parallel.tensor to 1"
        )


def _or_upstreams(recipe: Recipe) -> str:
    """The other way out, where upstream has the schedule or another."""
    kind = recipe.schedule_kind
    if kind is not None and kind.runs_upstream:
        return ", or set pipeline.executor to upstream"
    theirs = [other.name for other in SCHEDULES.values() if other.runs_upstream]
    return f", or set pipeline.schedule to {' or '.join(theirs)}, which upstream runs"
