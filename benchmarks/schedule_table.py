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

from dsv3_plugin.cli.schedule_options import Stages, searched, stages_of
from dsv3_plugin.schedules.costs import Costs
from dsv3_plugin.schedules.registry import SCHEDULES
from dsv3_plugin.schedules.simulate import Timeline, simulate

COSTS = Costs()


def published(pp: int, micro_batches: int, stages: Stages) -> list[Timeline]:
    """The published schedules that exist for this size."""
    searched = SCHEDULES["search"].placement(pp)
    schedules = []
    for kind in SCHEDULES.values():
        if kind.searched or not kind.exists(pp, micro_batches):
            continue
        if stages.model is not None and kind.placement(pp) != searched:
            continue
        schedules.append(kind.schedule(pp, micro_batches))
        if kind.make_overlapped is not None:
            schedules.append(kind.schedule(pp, micro_batches, 4, overlap=True))
    return [simulate(one, stages_of(one, stages, COSTS)) for one in schedules]


def compare(pp: int, micro_batches: int, stages: Stages, effort: float) -> dict[str, object]:
    """Print the table of one size; the JSON line holds the same."""
    timelines = published(pp, micro_batches, stages)
    bound = None
    if effort:
        found = searched(
            pp,
            micro_batches,
            None,
            stages,
            COSTS,
            overlap=False,
            activations=None,
            seed=0,
            effort=effort,
        )
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
    stages = Stages(model=arguments.model)
    effort = 0.0 if arguments.no_search else arguments.effort
    for micro_batches in arguments.micro_batches:
        print(json.dumps(compare(arguments.pp, micro_batches, stages, effort)))


if __name__ == "__main__":
    main()
