"""The planner against what was published: steps, DeepSeek's own split of one, its hours, memory.

    python benchmarks/planner.py [--png planner.png]

Each step of published_steps.yaml is held out in turn: two efficiencies are fitted to the other
steps of its GPU generation, and the step is predicted with them. Beside it stand the prediction of
the cluster files as they are, fitted to nothing, and that of a constant MFU, the others' mean.
Prints tables and one JSON line.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from dsv3_plugin.numbers import bytes_text
from dsv3_plugin.planner.calibration.fit import calibrate, predict, scaled
from dsv3_plugin.planner.calibration.measured import Measured, read_rows
from dsv3_plugin.planner.cluster import Cluster, load_cluster
from dsv3_plugin.planner.counts import flops_per_token
from dsv3_plugin.planner.make import make_plan
from dsv3_plugin.planner.memory.of_recipe import rank_memories
from dsv3_plugin.planner.plan import Plan
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.stages import Stage
from dsv3_plugin.planner.time.recipe_steps import RecipeSteps
from dsv3_plugin.planner.time.stage_times import stage_times
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.schedules.actions import BACKWARD, FORWARD, INPUT, WEIGHT, Overlap
from dsv3_plugin.schedules.costs import Costs, even_stages
from dsv3_plugin.schedules.registry import SCHEDULES
from dsv3_plugin.schedules.simulate import simulate

PUBLISHED = Path(__file__).parent / "published_steps.yaml"


@dataclass(frozen=True)
class Generation:
    """GPUs that are calibrated together, since their cluster files err alike.

    fitted: the share of the format that most of its steps multiply in, and that of the link which
        tokens take to their experts. FP8 on Hopper has one step only: its share stays DeepGEMM's.
    """

    name: str
    clusters: tuple[str, ...]
    fitted: tuple[str, str]


MOST = 4 / 3
"""By how much a fit may change a share: measurements of one chip's kernels that were published by
different people differ by up to a third."""

GENERATIONS = (
    Generation("Hopper", ("h800", "h100"), ("gemm_bf16", "network")),
    Generation("Blackwell", ("b200", "gb200", "gb300"), ("gemm_fp8", "nvlink")),
)
LEFT_OUT = (
    "Qwen3-235B on H100 and MI355X, Mixtral 8x22B on MI355X: grouped-query attention, which the "
    "planner does not count",
    "V3 GRPO on H100: a step holds rollouts",
    "256 GB200 at 4912 and GB300 at 6288 tokens/s: the cards' runs in another release",
)


@dataclass(frozen=True)
class Held:
    """A step that was held out."""

    step: Measured
    remarks: tuple[str, ...]
    generation: Generation
    as_filed: float
    predicted: float
    constant_mfu: float
    factors: dict[str, float]

    def error(self, seconds: float) -> float:
        return seconds / self.step.seconds - 1


def published() -> list[tuple[Measured, tuple[str, ...]]]:
    """The steps, and what is remarked of them."""
    return [
        (row.measured(f"row {number}", PUBLISHED.parent, load_cluster("h100")), (*row.remarks,))
        for number, row in enumerate(read_rows(PUBLISHED), start=1)
    ]


def mfu(step: Measured) -> float:
    """Model FLOPs over the peak of the format that most products use."""
    recipe, peaks = step.recipe, step.cluster.peak_tflops
    flops = flops_per_token(recipe.model, recipe.data.seq_length).total
    rate = flops * step.batch * recipe.data.seq_length / step.seconds / recipe.parallel.processes
    peak = peaks.bf16 if recipe.precision.fp8 is None else peaks.fp8
    assert peak is not None
    return rate / (peak * 1e12)


def held_out() -> list[Held]:
    """Every step, predicted from the others of its generation."""
    found = []
    steps = published()
    for generation in GENERATIONS:
        own = [pair for pair in steps if pair[0].cluster.name in generation.clusters]
        for step, remarks in own:
            others = [other for other, _ in own if other is not step]
            fitted = calibrate(step.cluster, others, predict, generation.fitted, MOST)
            share = math.exp(sum(math.log(mfu(other)) for other in others) / len(others))
            found.append(
                Held(
                    step=step,
                    remarks=remarks,
                    generation=generation,
                    as_filed=predict(step, step.cluster),
                    predicted=predict(step, scaled(step.cluster, fitted.factors)),
                    constant_mfu=step.seconds * mfu(step) / share,
                    factors=fitted.factors,
                )
            )
    return found


def show_steps(rows: Sequence[Held]) -> dict[str, dict[str, dict[str, float]]]:
    """The table of held-out steps, and what stands out of it."""
    print(
        f"\n{'step, seconds':44}{'published':>10}{'held out':>10}{'':>8}{'as filed':>9}"
        f"{'constant MFU':>14}   fitted factors; remarks"
    )
    for row in rows:
        factors = ", ".join(f"{name} {value:.2f}" for name, value in row.factors.items())
        print(
            f"{row.step.name:44}{row.step.seconds:10.3f}{row.predicted:10.3f}"
            f"{row.error(row.predicted):+8.1%}{row.error(row.as_filed):+9.1%}"
            f"{row.error(row.constant_mfu):+14.1%}   {factors}; {', '.join(row.remarks)}"
        )
    told: dict[str, dict[str, dict[str, float]]] = {}
    for label, chosen in (
        *((g.name, [row for row in rows if row.generation is g]) for g in GENERATIONS),
        ("all", list(rows)),
    ):
        told[label] = {
            kind: {"median": median(errors), "worst": max(errors)}
            for kind in ("predicted", "as_filed", "constant_mfu")
            if (errors := [abs(row.error(getattr(row, kind))) for row in chosen])
        }
        errors = "; ".join(
            f"{kind.replace('_', ' ')} median {of['median']:.1%}, worst {of['worst']:.1%}"
            for kind, of in told[label].items()
        )
        print(f"{label}: {errors}")
    print("\nfitted to all steps, with their bounds (a third, never above the peak):")
    for generation in GENERATIONS:
        own = [row.step for row in rows if row.generation is generation]
        fitted = calibrate(own[0].cluster, own, predict, generation.fitted, MOST)
        for constant in fitted.constants:
            print(
                f"  {generation.name}, {constant.name}: {constant.before:.2f} → "
                f"{constant.value:.2f} on {own[0].cluster.name}, between {constant.low:.2f} and "
                f"{constant.high:.2f}{', where it ended' if constant.at_bound else ''}"
            )
    print("\nwhere the predicted seconds go (as filed, on the rank that computes longest):")
    for row in rows:
        parts = steps_of(row.step.recipe, row.step.cluster).step(row.step.batch).parts
        told_parts = ", ".join(
            f"{part} {value:.2f}" for part, value in parts.items() if value > 5e-3
        )
        print(f"  {row.step.name}: {told_parts}")
    print("\nleft out: " + "; ".join(LEFT_OUT))
    return told


def steps_of(recipe: Recipe, cluster: Cluster) -> RecipeSteps:
    return RecipeSteps(recipe, Setting.of(recipe, cluster, cluster.machine), cluster)


SPLIT = {"1F": 1.13, "1B": 1.99, "1W": 0.48, "1F1B": 13.95, "bubble": 2.06, "optimizer": 0.29}
"""Of a step of 19.926 s on 2048 H800 (arXiv 2505.09343, table 4, as it is quoted)."""


def show_split() -> dict[str, float]:
    """DeepSeek's split of a step: our schedule with the stage times that follow from it.

    A rank of DualPipe runs so many forwards, backwards and weight gradients alone and so many
    overlapped pairs; divided by their numbers, the published seconds are those of one. With these
    the schedule is simulated: what comes out is the time that ranks wait.
    """
    schedule = SCHEDULES["dualpipe"].schedule(16, 120)
    number = dict.fromkeys((FORWARD, BACKWARD, INPUT, WEIGHT, "pair"), 0.0)
    for rank in range(schedule.pp):
        for _, action in schedule.actions(rank):
            number["pair" if isinstance(action, Overlap) else action.kind] += 1 / schedule.pp
    forward, pair = SPLIT["1F"] / number[FORWARD], SPLIT["1F1B"] / number["pair"]
    weight = SPLIT["1W"] / number[WEIGHT]
    # What runs of a backward alone: whole ones, and the input's half of those whose weights wait.
    alone = number[BACKWARD] + number[INPUT]
    backward = (SPLIT["1B"] + number[INPUT] * weight) / alone
    # A stage is one of 16, whatever the model.
    one = Costs(forward=forward, input=backward - weight, weight=weight, pair=pair)
    timeline = simulate(schedule, even_stages(schedule, one))
    busy = sum(SPLIT[part] for part in ("1F", "1B", "1W", "1F1B"))
    bubble = timeline.makespan - busy
    formula = (16 / 2 - 1) * (pair + backward - 3 * weight)
    total = timeline.makespan + SPLIT["optimizer"]
    print("\nDeepSeek's split of a step (DualPipe, 16 ranks, 120 micro-batches)")
    h800 = load_cluster("h800")
    recipe = load_recipe("pretrain/deepseek-v3", (), h800.machine)
    own = stage_times(Setting.of(recipe, h800, h800.machine), h800, Stage(moe=4))
    stages = {
        f"split, over {number['pair']:.0f} pairs a rank": (forward, backward, weight, pair),
        "planner, four MoE layers, as filed": (
            own.forward,
            own.input + own.weight,
            own.weight,
            own.total - own.hidden,
        ),
    }
    for label, times in stages.items():
        f, b, w, fb = (f"{1e3 * time:.0f} ms" for time in times)
        print(f"  a stage by the {label}: forward {f}, backward {b} ({w} for weights), a pair {fb}")
    print("  a pair of four MoE layers in DeepSeek's published trace: 129 ms")
    print(f"  bubble: published {SPLIT['bubble']:.2f} s, simulated {bubble:.2f}, "
          f"(PP/2-1)(F&B+B-3W) {formula:.2f}")  # fmt: skip
    print(f"  step: published 19.93 s, simulated {total:.2f}")
    return {"bubble": bubble, "step": total, "pair": pair, "predicted_pair": own.total - own.hidden}


EXTENSION = ("extend/deepseek-v3-32k", "extend/deepseek-v3-128k")
"""The phases of the context extension as they are shipped; how its ranks were divided was not
published."""


def planned(cluster: Cluster, name: str, *overrides: str) -> Plan:
    recipe = load_recipe(name, overrides, cluster.machine)
    return make_plan(recipe, cluster, cluster.machine)


def show_hours() -> dict[str, float]:
    """GPU hours of DeepSeek-V3, without any step of its report: fitted to BF16 on H100 alone."""
    hopper = GENERATIONS[0]
    others = [step for step, _ in published() if step.cluster.name == "h100"]
    h800 = load_cluster("h800")
    cluster = scaled(h800, calibrate(h800, others, predict, hopper.fitted, MOST).factors)
    pretraining = planned(cluster, "pretrain/deepseek-v3", "pipeline.layout=balanced")
    largest = pretraining.phases[-1]
    per_trillion = largest.gpu_hours / largest.tokens * 1e12
    extension = sum(planned(cluster, name).gpu_hours for name in EXTENSION)
    print("\nhours of DeepSeek-V3 on 2048 H800, every step of its report held out")
    for label, hours, told in (
        ("per trillion tokens", per_trillion, 180e3),
        ("pretraining", pretraining.gpu_hours, 2664e3),
        ("context extension (its layout is ours)", extension, 119e3),
    ):
        print(f"  {label:44}{hours / 1e3:10,.0f}K{told / 1e3:10,.0f}K{hours / told - 1:+8.1%}")
    rate = largest.tokens_per_second_per_gpu
    tokens = 5e3 * 3600 * rate
    print(
        f"  post-training, 5K published: {tokens / 1e9:.0f}G tokens at {rate:,.0f} a second and "
        f"GPU, {tokens / 3e6:,.0f} for each of 1.5M samples twice, if nothing else ran: no "
        "rollouts, no rewards, no reference model of GRPO"
    )
    return {
        "per_trillion": per_trillion,
        "pretraining": pretraining.gpu_hours,
        "extension": extension,
    }


def show_memory() -> dict[str, float]:
    """Bytes of all states of Kimi-K2 (arXiv 2507.20534: PP16, EP16, ZeRO-1, about 30 GB a GPU)."""
    plan = planned(
        load_cluster("h800"),
        "pretrain/deepseek-v3",
        "model=kimi-k2",
        "precision.fp8=null",
        "parallel.expert=16",
        "pipeline.layout=balanced",
    )
    states = [
        sum(rank.memory_bytes.get(part, 0) for part in ("weights", "gradients", "optimizer"))
        for rank in plan.phases[-1].ranks
    ]
    mean, most = sum(states) / len(states), max(states)
    print("\nmemory published: Kimi-K2 on H800, all states about 30 GB a GPU")
    print(f"  predicted at 2048 GPUs: {bytes_text(mean)} on average, {bytes_text(most)} at most")
    print("\nmemory of the fullest rank of the steps above, all of which ran: GB, of the device's")
    for step, _ in published():
        fullest = max(
            rank_memories(steps_of(step.recipe, step.cluster), step.batch),
            key=lambda rank: rank.total,
        )
        over = "" if fullest.total <= step.cluster.memory_bytes else "  over"
        print(f"  {step.name:46}{fullest.total / 1e9:7.1f}{step.cluster.memory_gb:7.1f}{over}")
    return {"kimi_states_mean": mean, "kimi_states_most": most}


def draw(rows: Sequence[Held], path: Path) -> None:
    """Errors of the held-out steps, beside those of a constant MFU."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 0.45 * len(rows) + 1.6), layout="constrained")
    axis = figure.add_subplot()
    places = range(len(rows))
    for offset, kind, color, label in (
        (-0.2, "predicted", "tab:blue", "planner, step held out"),
        (0.2, "constant_mfu", "0.75", "constant MFU of the others"),
    ):
        errors = [100 * row.error(getattr(row, kind)) for row in rows]
        axis.barh([place + offset for place in places], errors, 0.38, color=color, label=label)
    axis.axvspan(-20, 20, color="tab:green", alpha=0.08)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(list(places), [row.step.name for row in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("predicted over published step time, less one (%)")
    axis.legend(frameon=False, fontsize=8)
    axis.grid(axis="x", alpha=0.25)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--png", type=Path, help="draw the errors of the held-out steps")
    options = parser.parse_args()
    rows = held_out()
    summary = {"steps": show_steps(rows)}
    summary |= {"split": show_split(), "hours": show_hours(), "memory": show_memory()}
    if options.png is not None:
        draw(rows, options.png)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
