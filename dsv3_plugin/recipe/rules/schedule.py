"""The pipeline schedule, by its name or from a file."""

from collections.abc import Iterator

from dsv3_plugin.errors import UserError
from dsv3_plugin.numbers import number_of
from dsv3_plugin.recipe.fitting import multiples
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.recipe.validation import nearest
from dsv3_plugin.schedules.placement import placement_of
from dsv3_plugin.schedules.registry import RAMPS, SCHEDULES


def schedule(recipe: Recipe) -> Iterator[str]:
    """The schedule exists, and its executor can run it."""
    wanted, devices = recipe.pipeline, recipe.parallel.pipeline
    name, kind = wanted.schedule, recipe.schedule_kind
    if wanted.devices not in (None, devices):
        yield (
            f"pipeline.devices {wanted.devices} and parallel.pipeline {devices} are one number: "
            "give one of them"
        )
    if kind is None and not name.endswith(".csv"):
        yield (
            f"pipeline.schedule '{name}' is unknown{nearest(name, SCHEDULES)}; it is one of "
            f"{', '.join(SCHEDULES)}, or the path of a CSV file"
        )
    if wanted.executor == "upstream" and not (kind and kind.runs_upstream):
        theirs = " and ".join(other.name for other in SCHEDULES.values() if other.runs_upstream)
        yield (
            f"pipeline.executor: upstream runs {theirs}, not {name}: set it to ours, or leave it "
            "out"
        )
    if kind is not None and kind.takes_stages_per_rank:
        if (wanted.virtual_stages or 1) < 2:
            yield f"pipeline.schedule: {name} needs pipeline.virtual_stages of 2 or more"
        if devices < 2:
            yield f"pipeline.schedule: {name} needs pipeline.devices of 2 or more, not {devices}"
    elif wanted.virtual_stages is not None:
        takers = " and ".join(k.name for k in SCHEDULES.values() if k.takes_stages_per_rank)
        yield (
            f"pipeline.virtual_stages belongs to the {takers} schedule, not to {name}: leave it "
            f"out, or set pipeline.schedule to {takers}"
        )
    if kind is not None and kind.even_ranks and devices % 2:
        yield (
            f"pipeline.schedule: {name} needs an even number of devices, not {devices}: set "
            f"pipeline.devices to {multiples(devices, 2)}"
        )


def schedule_file(recipe: Recipe) -> Iterator[str]:
    """A schedule from a file is proven, and made for as many devices in a shape we can build."""
    name, devices = recipe.pipeline.schedule, recipe.parallel.pipeline
    try:
        written = recipe.schedule_file
    except UserError as error:
        yield f"pipeline.schedule: {error}"
        return
    if written is None:
        return
    if written.pp != devices:
        yield (
            f"pipeline.schedule {name} is of {number_of(written.pp, 'rank')}, and the recipe has "
            f"{number_of(devices, 'pipeline device')}: set pipeline.devices to {written.pp}"
        )
    depths = {len(stream) for stream in written.streams}
    placed = placement_of(written)
    if len(depths) > 1 or placed.copies > 2:
        yield (
            f"pipeline.schedule {name} has {placed.copies} pipelines of {sorted(depths)} stages; "
            "there may be one, or two over the same number of stages: name another file"
        )
        return
    if len({len(chunks) for chunks in placed.chunks}) > 1:
        yield (
            f"pipeline.schedule {name} puts different numbers of stages on its ranks, and Megatron "
            "builds as many on each: name another file"
        )
    # The gradients of the two copies are added by ranks that face each other.
    if placed.copies == 2 and any(
        placed.rank_of(placed.depth + stage) != written.pp - 1 - placed.rank_of(stage)
        for stage in range(placed.depth)
    ):
        yield (
            f"pipeline.schedule {name} runs two pipelines that are not each other's mirror image: "
            "stage s of the second must lie on rank P-1-r where the first's lies on rank r; name "
            "another file"
        )


def micro_batches(recipe: Recipe) -> Iterator[str]:
    """Each schedule has as many micro-batches as it needs at every batch."""
    wanted, devices = recipe.pipeline, recipe.parallel.pipeline
    per_micro_batch = recipe.training.micro_batch_size * recipe.data_parallel
    batches = sorted({batch // per_micro_batch for _, batch in recipe.batch_schedule.entries})
    fewest = batches[0]
    name = wanted.schedule
    if recipe.schedule_file is not None and not wanted.ramp_schedule:
        holds = recipe.schedule_file.num_micro_batches
        for other in set(batches) - {holds}:
            yield (
                f"pipeline.schedule {name} is of "
                f"{number_of(holds, 'micro-batch', 'micro-batches')}, and a batch of "
                f"curves.batch_size gives {other}: make the batch {holds * per_micro_batch} "
                "sequences, or name a pipeline.ramp_schedule for the others"
            )
    kind = recipe.schedule_kind
    needed = 1 if kind is None else kind.least_micro_batches(devices)
    if fewest < needed and not wanted.ramp_schedule:
        yield (
            f"{name} on {number_of(devices, 'device')} needs {needed} micro-batches, and the "
            f"smallest batch gives {fewest}: raise the batch, or name a pipeline.ramp_schedule"
        )


def ramp(recipe: Recipe) -> Iterator[str]:
    """What runs the first batches finds the stages where the schedule after it wants them."""
    name, first = recipe.pipeline.schedule, recipe.pipeline.ramp_schedule
    if first is None:
        return
    if recipe.executor == "upstream":
        yield (
            f"pipeline.ramp_schedule goes with our executor, and upstream runs {name}: leave it "
            "out, or say pipeline.executor: ours"
        )
        return
    wanted = recipe.placement(name)
    if recipe.placement(first) != wanted:
        alike = [other for other in RAMPS if recipe.placement(other) == wanted]
        way_out = f"name {' or '.join(alike)}" if alike else "raise the smallest batch instead"
        yield (
            f"pipeline.ramp_schedule: {first} places the model's stages otherwise than {name}, and "
            f"they cannot move while training: {way_out}"
        )
