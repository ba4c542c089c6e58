"""What cannot be combined, each rule in words.

Every rule is a function from a recipe to the sentences of what is wrong; `check` raises the first.
They run when a recipe is made, so a run that could not work is refused before anything starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe import layout as layouts
from dsv3_plugin.recipe.placing import placement
from dsv3_plugin.schedules.placement import placement_of
from dsv3_plugin.schedules.registry import RAMPS, SCHEDULES

if TYPE_CHECKING:
    from dsv3_plugin.recipe.schema import Recipe


def check(recipe: Recipe) -> None:
    """Raise ValueError with the first sentence, if any rule is broken."""
    for rule in RULES:
        for sentence in rule(recipe):
            raise ValueError(sentence)


def processes(recipe: Recipe) -> Iterator[str]:
    """The model-parallel sizes divide the processes."""
    parallel = recipe.parallel
    together = parallel.tensor * parallel.pipeline * parallel.context
    if parallel.processes % together:
        yield (
            f"{parallel.processes} processes do not divide by tensor {parallel.tensor} × "
            f"pipeline {parallel.pipeline} × context {parallel.context} = {together}"
        )


def experts(recipe: Recipe) -> Iterator[str]:
    """Expert parallelism divides the routed experts and the ranks of a stage."""
    parallel, count = recipe.parallel, recipe.model.num_moe_experts
    if parallel.expert == 1:
        return
    if count is None:
        yield f"expert {parallel.expert} needs a model with experts"
        return
    if count % parallel.expert:
        yield f"expert {parallel.expert} does not divide {count} routed experts"
    ranks = parallel.processes // parallel.pipeline
    if ranks % parallel.expert:
        yield f"expert {parallel.expert} does not divide the {ranks} ranks of a pipeline stage"


def tensor(recipe: Recipe) -> Iterator[str]:
    """Tensor parallelism divides heads, vocabulary and sequence."""
    size = recipe.parallel.tensor
    for what, amount in (
        ("attention heads", recipe.model.num_attention_heads),
        ("vocabulary entries", recipe.model.vocab_size),
        ("tokens of a sequence", recipe.data.seq_length),
    ):
        if amount % size:
            yield f"tensor {size} does not divide the {amount} {what}"


def sequence(recipe: Recipe) -> Iterator[str]:
    """The model has positions for the sequence, and context parallelism divides it."""
    length, context = recipe.data.seq_length, recipe.parallel.context
    if length > recipe.model.max_position_embeddings:
        yield (
            f"data.seq_length {length} is more than the model's "
            f"{recipe.model.max_position_embeddings} positions (max_position_embeddings)"
        )
    if context > 1 and length % (2 * context):
        yield f"data.seq_length {length} does not divide by twice context {context}"


def evaluation(recipe: Recipe) -> Iterator[str]:
    """There is something to evaluate on."""
    interval = recipe.training.eval_interval
    if interval is not None and recipe.data.held_out == 0:
        yield (
            f"training.eval_interval {interval} needs held-out documents: give data.held_out a "
            "share above 0, or set training.eval_interval to null"
        )


def curves(recipe: Recipe) -> Iterator[str]:
    """Every curve can be resolved, and has values that make sense."""
    try:
        resolved = recipe.curves
    except ValueError as error:
        yield str(error)
        return
    for name in ("learning_rate", "router_bias_speed", "mtp_weight"):
        lowest = getattr(resolved, name).minimum
        if lowest < 0:
            yield f"curves.{name} goes below 0 ({lowest:g})"


def precision(recipe: Recipe) -> Iterator[str]:
    """FP8 and BF16 moments need what computes them."""
    wanted = recipe.precision
    if recipe.backend == "local" and wanted.fp8 is not None:
        yield "precision.fp8 needs backend: transformer_engine"
    if recipe.host == "cpu" and recipe.backend == "transformer_engine":
        yield "backend: transformer_engine needs a GPU; with host: cpu say backend: local"
    if wanted.fp8 is not None and wanted.dtype != "bf16":
        yield "precision.fp8 needs precision.dtype: bf16"
    if wanted.moments == "bf16":
        if not recipe.parallel.zero1:
            yield "precision.moments: bf16 needs parallel.zero1: true"
        if recipe.backend == "local":
            yield "precision.moments: bf16 needs backend: transformer_engine"


def torch_backend(recipe: Recipe) -> Iterator[str]:
    """What only Transformer Engine can do is not asked of torch."""
    if recipe.backend != "local" and recipe.host != "cpu":
        return
    if recipe.parallel.context > 1:
        yield (
            f"parallel.context {recipe.parallel.context} needs backend: transformer_engine, whose "
            "attention divides sequences; with backend: local set parallel.context to 1"
        )
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
                f"{name} {width} is not a multiple of {row}, which the grouped matrix products of "
                f"backend: local need in {recipe.precision.dtype}"
            )


def dispatch(recipe: Recipe) -> Iterator[str]:
    """Expert-parallel ranks fill nodes; only the two-hop dispatcher quantises."""
    wanted, expert = recipe.dispatch, recipe.parallel.expert
    if wanted.precision == "fp8" and wanted.kind != "two_hop":
        yield f"dispatch.precision: fp8 needs dispatch.kind: two_hop, not {wanted.kind}"
    if wanted.kind != "alltoall" and recipe.model.num_moe_experts is None:
        yield f"dispatch.kind: {wanted.kind} needs a model with experts"
    if wanted.hide_shared_expert and "shared_experts" in recipe.recompute:
        yield (
            "dispatch.hide_shared_expert computes the shared expert in parts, and recompute: "
            "[shared_experts] as a whole: leave out one of them"
        )
    if wanted.kind in ("deepep", "hybridep") and recipe.host == "cpu":
        yield f"dispatch.kind: {wanted.kind} needs a GPU; on the CPU use alltoall or two_hop"
    per_node = wanted.ranks_per_node
    # A node may also hold several expert-parallel groups.
    if per_node != "auto" and expert % per_node and per_node % expert:
        divisors = ", ".join(str(number) for number in range(1, expert) if expert % number == 0)
        yield (
            f"dispatch.ranks_per_node {per_node} does not divide expert {expert}: set it to "
            f"{divisors} or {expert}, or to a multiple of {expert}"
        )


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
            f"pipeline.schedule '{name}' is unknown; it is one of {', '.join(SCHEDULES)}, "
            "or the path of a CSV file"
        )
    if wanted.executor == "upstream" and not (kind and kind.runs_upstream):
        theirs = " and ".join(other.name for other in SCHEDULES.values() if other.runs_upstream)
        yield f"pipeline.executor: upstream runs {theirs}, not {name}"
    if kind is not None and kind.takes_stages_per_rank:
        if (wanted.virtual_stages or 1) < 2:
            yield f"pipeline.schedule: {name} needs pipeline.virtual_stages of 2 or more"
        if devices < 2:
            yield f"pipeline.schedule: {name} needs 2 pipeline devices or more"
    elif wanted.virtual_stages is not None:
        takers = " and ".join(k.name for k in SCHEDULES.values() if k.takes_stages_per_rank)
        yield f"pipeline.virtual_stages belongs to the {takers} schedule, not to {name}"
    if kind is not None and kind.even_ranks and devices % 2:
        yield f"pipeline.schedule: {name} needs an even number of devices, not {devices}"


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
            f"pipeline.schedule {name} is of {written.pp} ranks, and the recipe has {devices} "
            f"pipeline devices: set pipeline.devices to {written.pp}"
        )
    depths = {len(stream) for stream in written.streams}
    placed = placement_of(written)
    if len(depths) > 1 or placed.copies > 2:
        yield (
            f"pipeline.schedule {name} has {placed.copies} pipelines of {sorted(depths)} stages; "
            "there may be one, or two over the same number of stages"
        )
        return
    if len({len(chunks) for chunks in placed.chunks}) > 1:
        yield (
            f"pipeline.schedule {name} puts different numbers of stages on its ranks; Megatron "
            "builds as many on each"
        )
    # The gradients of the two copies are added by ranks that face each other.
    if placed.copies == 2 and any(
        placed.rank_of(placed.depth + stage) != written.pp - 1 - placed.rank_of(stage)
        for stage in range(placed.depth)
    ):
        yield (
            f"pipeline.schedule {name} runs two pipelines that are not each other's mirror image: "
            "stage s of the second must lie on rank P-1-r where the first's lies on rank r"
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
                f"pipeline.schedule {name} is of {holds} micro-batches, and a batch of "
                f"curves.batch_size gives {other}: make the batch {holds * per_micro_batch} "
                "sequences, or name a pipeline.ramp_schedule for the others"
            )
    kind = recipe.schedule_kind
    needed = 1 if kind is None else kind.least_micro_batches(devices)
    if fewest < needed and not wanted.ramp_schedule:
        yield (
            f"{name} on {devices} devices needs {needed} micro-batches, and the smallest "
            f"batch gives {fewest}: raise the batch, or name a pipeline.ramp_schedule"
        )


def layout(recipe: Recipe) -> Iterator[str]:
    """The layers can be laid out over the stages that the schedule has."""
    layers, devices = recipe.model.num_layers, recipe.parallel.pipeline
    written = recipe.pipeline.layout
    if written is None:
        if recipe.stages > layers:
            yield f"{recipe.stages} pipeline stages need as many layers, and the model has {layers}"
        return
    stages = layouts.stage_count(written)
    if stages % devices:
        yield f"pipeline.layout has {stages} stages, which {devices} devices do not divide"
        return
    name = recipe.pipeline.schedule
    wanted = placement(recipe, name).depth
    if stages != wanted:
        yield f"pipeline.layout has {stages} stages, and {name} on {devices} devices has {wanted}"
    held = layouts.expand(written).count("t")
    if held != layers:
        yield f"pipeline.layout has {held} layers (t), and the model has {layers}"
    yield from _prediction_layers(recipe, layouts.expand(written).split("|"))


def _prediction_layers(recipe: Recipe, stages: list[str]) -> Iterator[str]:
    """Multi-token prediction is laid out, all of it where it can be computed."""
    count = recipe.model.mtp_num_layers or 0
    held = sum(stage.count("m") for stage in stages)
    if held != count:
        yield (
            f"pipeline.layout has {held} multi-token-prediction layers (m), and the model has "
            f"{count} (mtp_num_layers)"
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
        yield "pipeline.layout has a layer (t) after multi-token prediction (m), which comes last"


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
    wanted = placement(recipe, name)
    if placement(recipe, first) != wanted:
        alike = [other for other in RAMPS if placement(recipe, other) == wanted]
        way_out = f"name {' or '.join(alike)}" if alike else "raise the smallest batch instead"
        yield (
            f"pipeline.ramp_schedule: {first} places the model's stages otherwise than {name}, and "
            f"they cannot move while training: {way_out}"
        )


def combinations(recipe: Recipe) -> Iterator[str]:
    """What our own executor cannot run together with."""
    flags = {flag_name(flag): value for flag, value in recipe.megatron_args.items()}
    if flags.get("step-batch-size-schedule") or flags.get("global-batch-size"):
        yield "the batch size is curves.batch_size, not a flag in megatron_args"
    for flag, (key, value) in _said_in_the_recipe(recipe).items():
        if flags.get(flag, False) not in (False, value):
            yield (
                f"megatron_args: {flag} {flags[flag]} contradicts {key}, which is {value}: say it "
                "there, not here"
            )
    if recipe.executor != "ours":
        return
    what = f"pipeline.schedule: {recipe.pipeline.schedule} with executor ours"
    for flag in ("enable-cuda-graph", "external-cuda-graph"):
        if flags.get(flag):
            yield f"{what} cannot run under CUDA graphs ({flag}): its order changes per step"
    if flags.get("cuda-graph-impl", "none") != "none":
        yield f"{what} cannot run under CUDA graphs (cuda-graph-impl): its order changes per step"
    for flag in ("cuda-graph-scope", "cuda-graph-modules"):
        if flags.get(flag):
            yield f"{what} cannot run under CUDA graphs ({flag}): its order changes per step"
    if flags.get("overlap-moe-expert-parallel-comm"):
        yield (
            f"{what} overlaps the experts' communication by itself, in pairs: leave out "
            "overlap-moe-expert-parallel-comm, which changes the order of upstream's schedule"
        )
    if flags.get("delay-wgrad-compute"):
        yield (
            f"{what} puts off weight gradients by itself: leave out delay-wgrad-compute, which "
            "makes upstream's schedule compute them"
        )
    if flags.get("variable-seq-lengths"):
        yield (
            f"{what} sends tensors of one shape, known beforehand (variable-seq-lengths): every "
            "sequence has data.seq_length tokens"
        )
    if flags.get("defer-embedding-wgrad-compute"):
        yield (
            f"{what} cannot defer the embedding's weight gradient (defer-embedding-wgrad-compute): "
            "the schedule itself places weight gradients"
        )
    for flag in ("overlap-grad-reduce", "overlap-param-gather"):
        if flags.get(flag):
            yield (
                f"{what} cannot overlap the data-parallel reduction ({flag}): upstream starts it "
                "at the input gradient, before the weight gradient is there"
            )
    if recipe.parallel.context > 1:
        yield f"{what} does not divide sequences: parallel.context must be 1"
    if recipe.parallel.tensor > 1 or flags.get("sequence-parallel"):
        yield (
            f"{what} sends whole sequences between stages, and tensor parallelism divides them "
            "(sequence-parallel): parallel.tensor must be 1"
        )


def _said_in_the_recipe(recipe: Recipe) -> dict[str, tuple[str, int | str | None]]:
    """Flags that a key of the recipe answers for: (key, its value)."""
    parallel = recipe.parallel
    return {
        "tensor-model-parallel-size": ("parallel.tensor", parallel.tensor),
        "pipeline-model-parallel-size": ("parallel.pipeline", parallel.pipeline),
        "pipeline-model-parallel-layout": ("pipeline.layout", recipe.pipeline.layout),
        "context-parallel-size": ("parallel.context", parallel.context),
        "expert-model-parallel-size": ("parallel.expert", parallel.expert),
        "micro-batch-size": ("training.micro_batch_size", recipe.training.micro_batch_size),
        "seq-length": ("data.seq_length", recipe.data.seq_length),
        "transformer-impl": ("backend", recipe.backend),
    }


def flag_name(written: str) -> str:
    """A flag of megatron_args in upstream's spelling, without the dashes before it."""
    return written.removeprefix("--").replace("_", "-")


RULES = (
    schedule,
    processes,
    experts,
    tensor,
    sequence,
    evaluation,
    curves,
    schedule_file,
    micro_batches,
    layout,
    ramp,
    precision,
    torch_backend,
    dispatch,
    combinations,
)
