"""What lm-evaluation-harness found: a table, a mapping."""

from collections.abc import Iterator, Mapping
from typing import Any

from dsv3_plugin.report.plan.grid import Grid

_STDERR = "_stderr"


def grid(results: Mapping[str, Any]) -> Grid:
    """A row for each metric of each task."""
    rows = [
        (
            task,
            metric if how == "none" else f"{metric} ({how})",
            f"{value:.4f}",
            "" if error is None else f"± {error:.4f}",
            f"{results['n-samples'][task]['effective']:,}" if task in results["n-samples"] else "",
        )
        for task, metric, how, value, error in _numbers(results)
    ]
    return Grid(("task", "metric", "value", "standard error", "questions"), tuple(rows))


def mapping(results: Mapping[str, Any], checkpoint: str) -> dict[str, Any]:
    """The numbers for JSON, with the versions of the tasks."""
    tasks: dict[str, dict[str, Any]] = {}
    for task, metric, how, value, error in _numbers(results):
        metrics = tasks.setdefault(task, {"version": results["versions"].get(task), "metrics": []})
        one = {"metric": metric, "filter": how, "value": value, "stderr": error}
        metrics["metrics"].append(one)
    return {"checkpoint": checkpoint, "tasks": tasks}


def _numbers(
    results: Mapping[str, Any],
) -> Iterator[tuple[str, str, str, float, float | None]]:
    """Task, metric, the filter of its answers, value and standard error."""
    for task, found in results["results"].items():
        for key, value in found.items():
            metric, _, how = key.partition(",")
            if not how or metric.endswith(_STDERR) or not isinstance(value, int | float):
                continue
            error = found.get(f"{metric}{_STDERR},{how}")
            known = isinstance(error, int | float)
            yield task, metric, how, value, error if known else None
