"""What is said of a plan in words, on a terminal and on a page."""

from dsv3_plugin.numbers import bytes_text, count_text, figure_text, money_text
from dsv3_plugin.planner.plan import Limit, PhasePlan, Plan
from dsv3_plugin.report.plan.case import Case
from dsv3_plugin.report.plan.words import MOMENT


def counts(case: Case) -> str:
    """Parameters and operations, in brief."""
    parameters, flops = case.parameters, case.flops
    return (
        f"{parameters.total:,} parameters, {count_text(parameters.active)} of them active; "
        f"{count_text(flops.total)} FLOPs per token at sequences of {flops.seq_length}"
    )


def where(plan: Plan) -> str:
    """The cluster, and how much of it."""
    cluster = plan.cluster
    devices = "GPUs" if cluster.host == "gpu" else "devices"
    used = f"on {plan.processes:,} of the {cluster.gpus:,} {devices} of {cluster.name}"
    price = money_text(cluster.price_per_gpu_hour, cluster.currency, 3)
    asked = f", {price} an hour each" if cluster.price_per_gpu_hour else ""
    return f"{used} ({cluster.gpu}){asked}"


def pipeline(phase: PhasePlan) -> str:
    """How the layers are divided in a phase."""
    if len(phase.ranks) == 1:
        return "no pipeline"
    return f"{len(phase.ranks)} pipeline ranks, {phase.schedule}, {phase.name}"


def memory(plan: Plan) -> str:
    """Whose memory is shown, and when."""
    phase = plan.fullest
    rank = phase.fullest
    fullest_at = max(rank.moments, key=lambda moment: rank.moments[moment])
    return f"memory of pipeline rank {rank.pipeline_rank}, {phase.name}, in {MOMENT[fullest_at]}"


def step(phase: PhasePlan) -> str:
    """Which step's time is shown, and of whom."""
    return f"a step of {phase.name} on its slowest rank, {phase.slowest.pipeline_rank}"


def checkpoints(plan: Plan) -> str:
    """How much is written."""
    written = sum(phase.checkpoints_written for phase in plan.phases)
    largest = max(phase.checkpoint_bytes for phase in plan.phases)
    volume = sum(phase.checkpoint_bytes * phase.checkpoints_written for phase in plan.phases)
    if not written:
        return "no checkpoint is written"
    each = f"checkpoints of {bytes_text(largest)}"
    return f"{each}, written {written:,} times: {bytes_text(volume)} if all are kept"


def answering(plan: Plan) -> list[str]:
    """What a round of answers takes, where there are any."""
    found, kept = plan.round, _kept(plan)
    if found is None:
        return kept
    steps = "one step" if found.steps == 1 else f"{found.steps} steps"
    made = f", of which a round makes {found.made:,}" if found.made < found.tokens else ""
    lines = [
        f"a round: {found.answers:,} answers of up to {found.tokens:,} tokens{made}, "
        f"{found.at_once:,} at once by an engine, for {steps}; planned is that all are so long",
        f"its cache takes {bytes_text(found.cache_bytes)} of a rank, and is given back before the "
        "step; weights are read where they lie, and nothing is handed over (to a server elsewhere, "
        f"{bytes_text(found.weights_bytes)} a round)",
        f"a round takes {_seconds(found.seconds)} s at the least, in which weights and latents "
        "are read for each token of the longest answer; messages, products, drawing and rewards "
        "are not counted",
    ]
    if found.reference_bytes:
        lines.append(
            f"the reference takes {bytes_text(found.reference_bytes)} of a rank's host, and twice "
            "that while it is in place; of the device nothing"
        )
    return [*lines, *kept]


def _kept(plan: Plan) -> list[str]:
    """What answers take on the disk, whoever makes them."""
    kept = plan.kept
    if kept is None:
        return []
    several = kept.rounds * kept.bytes
    more = f", {bytes_text(several)} of the {kept.rounds} between two checkpoints"
    return [
        f"answers of a round take {bytes_text(kept.bytes)} of the run's folder at the most "
        f"(rollouts/){more if kept.rounds > 1 else ''}"
    ]


def _seconds(seconds: float) -> str:
    """Whole ones, and of less than ten two digits: a small model's are not 0."""
    return f"{seconds:,.0f}" if seconds >= 10 else figure_text(seconds, 2)


def limit(found: Limit) -> str:
    """The tightest limit; of what does not fit, with the nearest change that does."""
    return f"{found.sentence}; {found.way_out}" if found.way_out else found.sentence


def in_the_end(plan: Plan) -> list[str]:
    """What a person has to know before all else: the limit, and what uneven ranks cost."""
    uneven = unevenness(plan)
    return [limit(plan.limit), *([uneven] if uneven is not None else [])]


def unevenness(plan: Plan) -> str | None:
    """What is lost to ranks with much more work than others; None where it is little."""
    ranks = plan.longest.ranks
    slowest = max(ranks, key=lambda rank: rank.work)
    if slowest.work < _UNEVEN:
        return None
    return (
        f"pipeline rank {slowest.pipeline_rank} has {slowest.work:.2f} times the mean's work, and "
        "the others wait: try pipeline.layout=balanced, or where memory forces that, more to "
        "recompute or another schedule (--search)"
    )


_UNEVEN = 1.15
"""Times the mean: more than whole layers need to make of it on most pipelines."""
