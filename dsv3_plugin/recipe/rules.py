"""What cannot be combined, each rule in words.

Every rule is a function from a recipe to the sentences of what is wrong; `check` raises the first.
They run when a recipe is made, so a run that could not work is refused before anything starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dsv3_plugin.recipe import layout as layouts

if TYPE_CHECKING:
    from dsv3_plugin.recipe.schema import Recipe

SCHEDULES = ("1f1b", "interleaved", "zb1p", "zbv", "dualpipe", "dualpipe_v", "search")


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


def dispatch(recipe: Recipe) -> Iterator[str]:
    """Nodes divide the expert-parallel ranks; only the two-hop dispatcher quantises."""
    wanted, expert = recipe.dispatch, recipe.parallel.expert
    if wanted.precision == "fp8" and wanted.kind != "two_hop":
        yield f"dispatch.precision: fp8 needs dispatch.kind: two_hop, not {wanted.kind}"
    if wanted.kind != "alltoall" and recipe.model.num_moe_experts is None:
        yield f"dispatch.kind: {wanted.kind} needs a model with experts"
    if wanted.kind in ("deepep", "hybridep") and recipe.host == "cpu":
        yield f"dispatch.kind: {wanted.kind} needs a GPU; on the CPU use alltoall or two_hop"
    per_node = wanted.ranks_per_node
    # A node may also hold several expert-parallel groups.
    if wanted.kind == "two_hop" and per_node != "auto" and expert % per_node and per_node % expert:
        yield f"dispatch.ranks_per_node {per_node} does not divide expert {expert}"


def schedule(recipe: Recipe) -> Iterator[str]:
    """The schedule exists, and its executor can run it."""
    wanted, devices = recipe.pipeline, recipe.parallel.pipeline
    name = wanted.schedule
    if wanted.devices not in (None, devices):
        yield (
            f"pipeline.devices {wanted.devices} and parallel.pipeline {devices} are one number: "
            "give one of them"
        )
    if name not in SCHEDULES and not name.endswith(".csv"):
        yield (
            f"pipeline.schedule '{name}' is unknown; it is one of {', '.join(SCHEDULES)}, "
            "or the path of a CSV file"
        )
    if wanted.executor == "upstream" and name not in ("1f1b", "interleaved"):
        yield f"pipeline.executor: upstream runs 1f1b and interleaved, not {name}"
    if name == "interleaved" and (wanted.virtual_stages or 1) < 2:
        yield "pipeline.schedule: interleaved needs pipeline.virtual_stages of 2 or more"
    if name != "interleaved" and wanted.virtual_stages is not None:
        yield f"pipeline.virtual_stages belongs to the interleaved schedule, not to {name}"
    if name == "interleaved" and devices < 2:
        yield "pipeline.schedule: interleaved needs 2 pipeline devices or more"
    if name == "dualpipe" and devices % 2:
        yield f"pipeline.schedule: dualpipe needs an even number of devices, not {devices}"


def micro_batches(recipe: Recipe) -> Iterator[str]:
    """Each schedule has as many micro-batches as it needs at the smallest batch."""
    wanted, devices = recipe.pipeline, recipe.parallel.pipeline
    per_micro_batch = recipe.training.micro_batch_size * recipe.data_parallel
    fewest = min(batch for _, batch in recipe.batch_schedule.entries) // per_micro_batch
    name = wanted.schedule
    if name in ("dualpipe", "dualpipe_v") and fewest < 2 * devices and not wanted.ramp_schedule:
        yield (
            f"{name} on {devices} devices needs {2 * devices} micro-batches, and the smallest "
            f"batch gives {fewest}: raise the batch, or name a pipeline.ramp_schedule"
        )


def layout(recipe: Recipe) -> Iterator[str]:
    """The layers can be laid out over the stages."""
    layers, devices = recipe.model.num_layers, recipe.parallel.pipeline
    written = recipe.pipeline.layout
    if written is None:
        if recipe.stages > layers:
            yield f"{recipe.stages} pipeline stages need as many layers, and the model has {layers}"
        return
    stages = layouts.stage_count(written)
    if stages % devices:
        yield f"pipeline.layout has {stages} stages, which {devices} devices do not divide"
    held = layouts.expand(written).count("t")
    if held != layers:
        yield f"pipeline.layout has {held} layers (t), and the model has {layers}"


def combinations(recipe: Recipe) -> Iterator[str]:
    """What our own executor cannot run together with."""
    flags = {flag_name(flag): value for flag, value in recipe.megatron_args.items()}
    if flags.get("step-batch-size-schedule") or flags.get("global-batch-size"):
        yield "the batch size is curves.batch_size, not a flag in megatron_args"
    if recipe.executor != "ours":
        return
    what = f"pipeline.schedule: {recipe.pipeline.schedule} with executor ours"
    for flag in ("enable-cuda-graph", "external-cuda-graph"):
        if flags.get(flag):
            yield f"{what} cannot run under CUDA graphs ({flag}): its order changes per step"
    if flags.get("cuda-graph-impl", "none") != "none":
        yield f"{what} cannot run under CUDA graphs (cuda-graph-impl): its order changes per step"
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
    micro_batches,
    layout,
    precision,
    dispatch,
    combinations,
)
