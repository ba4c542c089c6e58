"""Which layers lie on which pipeline stage."""

from collections.abc import Iterator

from dsv3_plugin.numbers import number_of
from dsv3_plugin.recipe.fitting import multiples
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.recipe.sections import BALANCED
from dsv3_plugin.recipe.stage_layout import expand, stage_count


def layout(recipe: Recipe) -> Iterator[str]:
    """The layers can be laid out over the stages that the schedule has."""
    layers, devices = recipe.model.num_layers, recipe.parallel.pipeline
    written = recipe.pipeline.layout
    if written == BALANCED:
        yield from _can_be_balanced(recipe)
        return
    if written is None:
        stages = recipe.pipeline_stages
        if stages > layers:
            yield (
                f"{stages} pipeline stages need as many layers, and the model has {layers}: take "
                "fewer pipeline.devices, a schedule with fewer stages, or more model.num_layers"
            )
        return
    try:
        stages = stage_count(written)
    except ValueError as error:
        yield str(error)
        return
    if stages % devices:
        yield (
            f"pipeline.layout has {stages} stages, which {devices} devices do not divide: write "
            f"{multiples(stages, devices)} (parted by |)"
        )
        return
    name = recipe.pipeline.schedule
    wanted = recipe.placement(name).depth
    if stages != wanted:
        yield (
            f"pipeline.layout has {stages} stages, and {name} on {number_of(devices, 'device')} "
            f"has {wanted}: write as many (parted by |)"
        )
    held = expand(written).count("t")
    if held != layers:
        yield (
            f"pipeline.layout has {held} layers (t), and the model has {layers}: write as many, or "
            f"set model.num_layers to {held}"
        )
    yield from _prediction_layers(recipe, expand(written).split("|"))


def _can_be_balanced(recipe: Recipe) -> Iterator[str]:
    """There is something to divide, and something for each stage but the first and the last."""
    layers, devices = recipe.model.num_layers, recipe.parallel.pipeline
    if devices == 1:
        yield (
            "pipeline.layout: balanced divides the layers among pipeline devices, and there is "
            "one: leave it out, or raise pipeline.devices"
        )
        return
    stages = recipe.pipeline_stages
    if stages - 2 > layers:
        yield (
            f"pipeline.layout: balanced puts a layer on each of {stages} stages but the first and "
            f"the last, and the model has {layers}: take fewer pipeline devices, or a schedule "
            "with fewer stages"
        )


def _prediction_layers(recipe: Recipe, stages: list[str]) -> Iterator[str]:
    """Multi-token prediction is laid out, all of it where it can be computed."""
    count = recipe.model.mtp_num_layers or 0
    held = sum(stage.count("m") for stage in stages)
    if held != count:
        yield (
            f"pipeline.layout has {held} multi-token-prediction layers (m), and the model has "
            f"{count} (mtp_num_layers): write as many"
        )
    if not held:
        return
    if recipe.executor == "ours" and stages[-1].count("m") != held:
        yield (
            "pipeline.layout puts multi-token prediction (m) apart from the head (L); with "
            "executor ours both are on the last stage: end the layout in mL"
        )
    # Upstream's own rules, which it would only tell once every process runs.
    last_chunks = stages[-recipe.parallel.pipeline :]
    if max(stage.count("m") for stage in last_chunks) != held:
        yield (
            "pipeline.layout must hold all multi-token-prediction layers (m) on one stage, the "
            "last of its device"
        )
    if "t" in "".join(stages).partition("m")[2]:
        yield (
            "pipeline.layout has a layer (t) after multi-token prediction (m), which comes last: "
            "end it in mL"
        )
