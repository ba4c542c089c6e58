"""Schedules side by side, simulated: idle time, makespan and memory.

    python benchmarks/schedule_table.py                 # P=16, M=60 and 120
    python benchmarks/schedule_table.py --pp 8 --micro-batches 20 60 --no-search

Costs F = I = W = 1 and an overlapped pair 2.5, no latency, for one P-th of the model on one
micro-batch; the same work on every rank. Memory is in micro-batches of a 1F1B stage, parameters in
copies of the model. Prints a table and one JSON line for each number of micro-batches.

`--model deepseek-v3` compares those that lay stages out in a V on the stages of a real model, by
its FLOPs: 61 layers, head and MTP on 32 stages, the same layers on each stage for all.
"""

import argparse
import json
from collections.abc import Sequence

from dsv3_plugin.planner.stage_costs import even_layers, model_stages
from dsv3_plugin.recipe.load import load_model
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.schedules.costs import Costs, StageCosts, relative_stages
from dsv3_plugin.schedules.placement import pipeline_ranks, stage_placement
from dsv3_plugin.schedules.registry import SCHEDULES
from dsv3_plugin.schedules.search.search import search
from dsv3_plugin.schedules.simulate import simulate
from dsv3_plugin.schedules.timeline import Timeline

COSTS = Costs()


def stage_costs(model: ModelConfig | None, pp: int, stage_ranks: Sequence[int]) -> StageCosts:
    """Stages as large as the model's, or all the same."""
    if model is None:
        return relative_stages(COSTS, pp, [1.0] * len(stage_ranks))
    return model_stages(model, even_layers(model, stage_ranks), pp, COSTS)


def published(pp: int, micro_batches: int, model: ModelConfig | None) -> list[Timeline]:
    """The published schedules that exist for this size."""
    searched = SCHEDULES["search"].placement(pp)
    schedules = []
    for kind in SCHEDULES.values():
        if kind.searched or not kind.exists(pp, micro_batches):
            continue
        if model is not None and kind.placement(pp) != searched:
            continue
        schedules.append(kind.schedule(pp, micro_batches))
        if kind.make_overlapped is not None:
            schedules.append(kind.schedule(pp, micro_batches, 4, overlap=True))
    timelines = []
    for one in schedules:
        costs = stage_costs(model, pp, pipeline_ranks(one)).repeated(len(one.streams))
        timelines.append(simulate(one, costs))
    return timelines


def compare(
    pp: int, micro_batches: int, model: ModelConfig | None, effort: float
) -> dict[str, object]:
    """Print the table of one size; the JSON line holds the same."""
    timelines = published(pp, micro_batches, model)
    bound = None
    if effort:
        costs = stage_costs(model, pp, stage_placement(pp, 2))
        found = search(pp, micro_batches, costs, effort=effort)
        timelines.append(found.timeline)
        bound = found.bound
    print(f"\nP = {pp}, M = {micro_batches}")
    print(f"{'schedule':28}{'makespan':>10}{'idle %':>8}{'activations':>13}{'parameters':>12}")
    rows = []
    for timeline in timelines:
        schedule = timeline.schedule
        row = {
            "schedule": schedule.name,
            "makespan": round(timeline.makespan, 4),
            "idle_percent": round(100 * timeline.idle_fraction, 2),
            "peak_activations": round(max(timeline.peak_activations), 3),
            "parameter_copies": len(schedule.streams),
        }
        rows.append(row)
        print(
            f"{row['schedule']:28}{row['makespan']:10g}{row['idle_percent']:8.2f}"
            f"{row['peak_activations']:13g}{row['parameter_copies']:12}"
        )
    if bound is not None:
        print(f"no schedule on this V with search's memory can be shorter than {bound:g}")
    return {"pp": pp, "micro_batches": micro_batches, "rows": rows, "lower_bound": bound}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pp", type=int, default=16)
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[60, 120])
    parser.add_argument("--model", help="shipped name or path; stages by its FLOPs")
    parser.add_argument("--no-search", action="store_true")
    parser.add_argument("--effort", type=float, default=1.0, help="of search")
    arguments = parser.parse_args()
    model = load_model(arguments.model) if arguments.model else None
    effort = 0.0 if arguments.no_search else arguments.effort
    for micro_batches in arguments.micro_batches:
        print(json.dumps(compare(arguments.pp, micro_batches, model, effort)))


if __name__ == "__main__":
    main()
