"""Sentences on a search: why each choice was made, and why the runners-up lost."""

from collections.abc import Iterable, Iterator

from dsv3_plugin.errors import UserError
from dsv3_plugin.numbers import bytes_text, figure_text
from dsv3_plugin.planner.search.candidate import Candidate, Choice
from dsv3_plugin.planner.search.neighbours import SAME, Neighbours
from dsv3_plugin.planner.search.weigh import Scales
from dsv3_plugin.recipe.stage_layout import even


def describe(choice: Choice) -> str:
    """A choice in a few words."""
    sizes = [
        f"{name} {size}"
        for name, size in (
            ("tensor", choice.tensor),
            ("pipeline", choice.pipeline),
            ("context", choice.context),
            ("expert", choice.expert),
        )
        if size > 1
    ]
    chunks = f" with {choice.virtual_stages} stages a rank" if choice.virtual_stages else ""
    words = [*sizes, f"micro-batch {choice.micro_batch}"]
    if choice.pipeline > 1:
        words.append(f"{choice.schedule}{chunks}")
    words.append(f"recompute [{', '.join(choice.recompute)}]")
    return ", ".join(words)


def why_lost(other: Candidate, best: Candidate) -> str:
    """Why a way is not the best one."""
    return f"{_longer(other, best)}: {_where(other, best)}"


def why_chosen(best: Candidate, neighbours: Iterable[Neighbours], scales: Scales) -> Iterator[str]:
    """A sentence for each choice of the best way: what others in its place would take."""
    for beside in neighbours:
        judged = [f"{words} {_judged(choice, best, scales)}" for words, choice in beside.others]
        if judged:
            yield f"{beside.made}: {'; '.join(judged)}"
    if best.choice.pipeline > 1:
        yield _why_layout(best, scales)


def _judged(choice: Choice, best: Candidate, scales: Scales) -> str:
    """What a neighbour of the best way would take."""
    try:
        other = scales.weigh(choice)
    except UserError as error:
        reason = str(error).removeprefix(f"{scales.given.name}: ").rstrip(".")
        return f"cannot be ({reason})"
    if not other.fits:
        return (
            f"does not fit ({bytes_text(other.memory_bytes)} on pipeline rank {other.memory_rank})"
        )
    if other.step_seconds < best.step_seconds * (1 + SAME):
        return "takes as long"
    return f"takes {_longer(other, best)} ({_where(other, best)})"


def _why_layout(best: Candidate, scales: Scales) -> str:
    """What the layout gains over as many layers on each stage as can be."""
    recipe, model = best.recipe, best.recipe.model
    made = f"layout {best.layout}"
    if recipe.pipeline_stages > model.num_layers:
        return f"{made}: ranks have equal work"
    plain = even(model.num_layers, recipe.pipeline_stages, model.mtp_num_layers or 0)
    pipeline = recipe.pipeline.model_copy(update={"layout": plain})
    other = scales.weigh_recipe(recipe.model_copy(update={"pipeline": pipeline}), best.choice)
    if not other.fits:
        needed = bytes_text(other.memory_bytes)
        return f"{made}: as many on each stage as can be does not fit ({needed})"
    return f"{made}: as many on each stage as can be takes {_longer(other, best)}"


def _longer(other: Candidate, best: Candidate) -> str:
    share = other.step_seconds / best.step_seconds - 1
    return f"{figure_text(100 * share, 2)} % longer"


def _where(other: Candidate, best: Candidate) -> str:
    """The part of a step that costs it most of the difference."""
    parts = {**other.time_by_part, **best.time_by_part}

    def difference(part) -> float:
        return other.time_by_part.get(part, 0.0) - best.time_by_part.get(part, 0.0)

    part = max(parts, key=difference)
    theirs, ours = (one.time_by_part.get(part, 0.0) for one in (other, best))
    return f"{_PARTS.get(part, part)} {figure_text(theirs, 3)} s for {figure_text(ours, 3)} s"


_PARTS = {
    "gemm": "matrix products",
    "elementwise": "kernels that only move bytes",
    "quantise": "quantising",
    "dispatch_nvlink": "dispatch within nodes",
    "dispatch_network": "dispatch between nodes",
    "tensor_parallel": "tensor-parallel messages",
    "context_parallel": "context-parallel messages",
    "pipeline": "waiting for the pipeline",
    "data_parallel": "reducing gradients",
    "optimizer": "the optimizer",
}
"""Parts of a step in words, where their name is none."""
