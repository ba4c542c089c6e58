"""What a plan takes for granted: every number of the cluster's file, and where it is from."""

from collections.abc import Iterator

import pydantic

from dsv3_plugin.planner.cluster import Cluster, Sourced
from dsv3_plugin.report.plan.grid import Grid


def assumptions(cluster: Cluster) -> Grid:
    """Key, value, and its source, or what it is where it is the maker's word."""
    return Grid(("key", "value", "what it is, where it is from"), (*_rows(cluster),), remark=True)


def _rows(section: pydantic.BaseModel, path: str = "") -> Iterator[tuple[str, str, str]]:
    source = getattr(section, "source", "")  # of all numbers beside it
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        what = " ".join((field.description or "").split())
        if isinstance(value, Sourced):
            yield f"{path}{key}", f"{value.value:g}", f"{what} {value.source}"
        elif isinstance(value, pydantic.BaseModel):
            yield from _rows(value, f"{path}{key}.")
        elif value is not None and not (source and key == "source"):
            text = f"{value:g}" if isinstance(value, float) else f"{value}"
            yield f"{path}{key}", text, f"{what} {source}".strip()
