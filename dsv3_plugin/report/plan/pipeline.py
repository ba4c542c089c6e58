"""A recipe's pipeline in time, for people and for programs: in milliseconds and gigabytes."""

from typing import Any

from dsv3_plugin.planner.plan import TimePart
from dsv3_plugin.planner.time.timelines import PipelineStep
from dsv3_plugin.report.plan.words import TIME, held_text

_TOLD = 2
"""Parts that say why a rank is the slowest."""
_MATTERS = 0.002
"""Share of the mean beyond which a rank computes longer, or a part makes it."""


def pipeline_mapping(name: str, step: PipelineStep) -> dict[str, Any]:
    """What `dsv3 schedule RECIPE --json` prints; times are seconds."""
    return step.timeline.summary() | {
        "recipe": name,
        "cluster": step.cluster.name,
        "batch": step.batch,
        "unit": "s",
        "ideal_makespan": step.ideal,
        "busy_per_rank": step.busy,
        "memory_bytes": [memory.total for memory in step.memories],
        "slowest_rank": step.busy.index(max(step.busy)),
        "beyond_mean": {part: value for part, value in step.beyond_mean.items() if value},
    }


def pipeline_lines(name: str, step: PipelineStep) -> list[str]:
    """The schedule in words, a line per rank, and which rank is the slowest and why."""
    timeline, schedule, card = step.timeline, step.timeline.schedule, step.cluster.memory_bytes
    fullest = max(memory.total for memory in step.memories)
    lines = [
        f"{name} on {step.cluster.name}: {schedule.name}, ranks: {schedule.pp}, "
        f"micro-batches: {schedule.num_micro_batches} (batch {step.batch:,}), "
        f"stages: {schedule.num_stages}",
        f"makespan {_ms(timeline.makespan)} ms, idle {100 * timeline.idle_fraction:.2f} %, "
        f"{_gb(fullest)} GB on the fullest rank of {_gb(card)}",
        "",
        "rank    busy ms    idle ms  activations GB  in all GB  holds",
    ]
    for rank, (busy, idle, memory) in enumerate(
        zip(step.busy, timeline.idle_per_rank, step.memories, strict=True)
    ):
        kept = _gb(memory.parts.get("activations", 0))
        lines.append(
            f"{rank:4} {_ms(busy):>10} {_ms(idle):>10} {kept:>15} {_gb(memory.total):>10}  "
            f"{held_text(memory.stages)}"
        )
    return [*lines, "", slowest_sentence(step)]


def slowest_sentence(step: PipelineStep) -> str:
    """Which rank computes longest, and what it has that the others have less of."""
    busy = step.busy
    longest, mean = max(busy), sum(busy) / len(busy)
    rank = busy.index(longest)

    def told(part: TimePart, seconds: float) -> str:
        return f"{_ms(seconds)} ms of {TIME[part]}"

    if longest <= (1 + _MATTERS) * mean:
        return f"all ranks compute as long, {_ms(longest)} ms"
    apart = step.beyond_mean.most_common()
    more = [told(part, value) for part, value in apart[:_TOLD] if value > _MATTERS * mean]
    less = [told(part, -value) for part, value in apart[:-2:-1] if -value > _MATTERS * mean]
    why = f": against the mean of ranks {' and '.join(more)} more" if more else ""
    why += f", {less[0]} less" if more and less else ""
    return (
        f"rank {rank} ({held_text(step.memories[rank].stages)}) is the slowest, "
        f"{_ms(longest)} ms, {longest / mean:.3f} times the mean{why}"
    )


def _ms(seconds: float) -> str:
    milliseconds = 1000 * seconds
    return f"{milliseconds:,.0f}" if milliseconds >= 1000 else f"{milliseconds:.3g}"


def _gb(number: float) -> str:
    return f"{number / 1e9:,.1f}" if number >= 1e8 else f"{number / 1e9:.2g}"
